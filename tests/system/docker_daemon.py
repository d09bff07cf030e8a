"""A Docker daemon of the tests' own, and the images that would otherwise be pulled.

The daemon has its own socket, data and process folders, so it touches no image or container of
the machine. It can pull nothing: the base image is made with debootstrap from Debian's mirror and
tagged with the name in the Dockerfile, and so is Prometheus from Debian's package.
"""

import contextlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.system.machine import ROOT, missing, run, running, tool, wait_until

PYTHON_IMAGE = "python:3.11-slim"
DEBIAN = "bookworm"
PACKAGES = "ca-certificates,python3,python3-pip,python3-venv"
CACHE = ROOT / ".cache" / "system"
CERTIFICATES = Path("etc/ssl/certs/ca-certificates.crt")


@dataclass(frozen=True)
class Docker:
    """The client of one daemon."""

    client: str
    host: str

    @property
    def env(self) -> dict[str, str]:
        """What a program needs to speak to this daemon, with this client first on the PATH."""
        path = os.pathsep.join([str(Path(self.client).parent), os.environ["PATH"]])
        return {"DOCKER_HOST": self.host, "DOCKER_BUILDKIT": "1", "PATH": path}

    def __call__(self, *args: str | Path, timeout_s: float = 300) -> str:
        """Run `docker args…` and return what it printed."""
        return run([self.client, *args], env=self.env, timeout_s=timeout_s).strip()

    def answers(self) -> bool:
        """Whether the daemon is up."""
        command = [self.client, "info"]
        done = subprocess.run(
            command, env={**os.environ, **self.env}, capture_output=True, check=False
        )
        return done.returncode == 0

    def import_tar(
        self, name: str, members: Mapping[str, Path], *changes: str, owned: Mapping[str, int] = {}
    ) -> None:
        """Make the image `name` of host files.

        Args:
            name: of the image.
            members: a path inside it to one here; they belong to root.
            changes: what a Dockerfile would say.
            owned: an empty folder inside it to its owner's number.
        """
        options = [part for change in changes for part in ("--change", change)]
        command = [self.client, "import", *options, "-", name]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **self.env},
        ) as process:
            assert process.stdin is not None
            with tarfile.open(fileobj=process.stdin, mode="w|") as archive:
                for inside, path in members.items():
                    archive.add(path, arcname=inside, filter=_owned_by_root)
                for inside, owner in owned.items():
                    archive.addfile(_folder_of(inside, owner))
            process.stdin.close()
        assert process.returncode == 0, f"docker import {name} ended with {process.returncode}"


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """The packages of a user's environment belong to root in an image."""
    member.uid = member.gid = 0
    return member


def _folder_of(inside: str, owner: int) -> tarfile.TarInfo:
    """An empty folder that belongs to a user."""
    folder = tarfile.TarInfo(inside)
    folder.type, folder.mode = tarfile.DIRTYPE, 0o755
    folder.uid = folder.gid = owner
    return folder


def _client_of(daemon: str) -> str:
    """The `docker` on the PATH that came with the daemon; a newer one may want a build plugin."""
    wanted = run([daemon, "--version"]).split()[2]
    for folder in os.environ["PATH"].split(os.pathsep):
        client = shutil.which("docker", path=folder)
        if client and run([client, "--version"]).split()[2] == wanted:
            return client
    return tool("docker", "docker.io")


@contextlib.contextmanager
def private_daemon(folder: Path) -> Iterator[Docker]:
    """A daemon with its socket in `folder`, which ends with the block and takes its data along."""
    daemon = tool("dockerd", "docker.io")
    if os.geteuid() != 0:
        missing("a Docker daemon of our own needs root")
    docker = Docker(_client_of(daemon), f"unix://{folder}/docker.sock")
    log = folder / "dockerd.log"
    # Images are large, and a temporary folder may lie in memory: the data goes beside the cache.
    data = CACHE / f"docker-{os.getpid()}"
    command = [
        daemon,
        f"--host={docker.host}",
        f"--data-root={data}",
        f"--exec-root={folder}/exec",
        f"--pidfile={folder}/dockerd.pid",
    ]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, data, ignore_errors=True)
        process = stack.enter_context(running(command, log))

        def ready() -> bool:
            assert process.poll() is None, f"dockerd ended:\n{log.read_text()}"
            return (folder / "docker.sock").exists() and docker.answers()

        wait_until("dockerd", ready, timeout_s=60)
        yield docker


def debian_root() -> Path:
    """The root file system of the base images; made once and kept in .cache."""
    root = CACHE / DEBIAN
    if root.exists():
        return root
    CACHE.mkdir(parents=True, exist_ok=True)
    unfinished = CACHE / f"{DEBIAN}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    debootstrap = tool("debootstrap", "debootstrap")
    options = ["--variant=minbase", f"--include={PACKAGES}"]
    run([debootstrap, *options, DEBIAN, unfinished, *_mirror()], timeout_s=900)
    # As in the image it stands for: pip may install, and Python is called python.
    (unfinished / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink()
    (unfinished / "usr/bin/python").symlink_to("python3")
    # The build reaches the package index through whatever this machine trusts.
    if (Path("/") / CERTIFICATES).exists():
        shutil.copy(Path("/") / CERTIFICATES, unfinished / CERTIFICATES)
    shutil.rmtree(unfinished / "var/cache/apt", ignore_errors=True)
    unfinished.rename(root)
    return root


def _mirror() -> list[str]:
    """The machine's own mirror of this Debian release; none: debootstrap's default."""
    apt = shutil.which("apt-get")
    if apt is None:
        return []
    lines = run([apt, "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)"])
    return [
        uri
        for codename, component, uri in map(str.split, lines.splitlines())
        if (codename, component) == (DEBIAN, "main")
    ][:1]


def add_python_image(docker: Docker, packages: Mapping[str, Path]) -> None:
    """Make the Dockerfile's base image, with `packages` (name, place here) already installed."""
    site = "usr/local/lib/python3.11/dist-packages"
    members = {".": debian_root()} | {f"{site}/{name}": path for name, path in packages.items()}
    certificates = f"/{CERTIFICATES}"
    docker.import_tar(
        PYTHON_IMAGE, members, f"ENV PIP_CERT={certificates} SSL_CERT_FILE={certificates}"
    )


NOBODY = 65534
TEMPLATES = "usr/share/prometheus/alertmanager"


def add_prometheus_image(docker: Docker, name: str) -> None:
    """Make an image of Debian's Prometheus that is called and started as the official one is."""
    members = {".": debian_root()}
    for program in ("prometheus", "promtool"):
        members[f"usr/bin/{program}"] = Path(tool(program, "prometheus"))
    started = ['ENTRYPOINT ["/bin/prometheus"]', "WORKDIR /prometheus", f"USER {NOBODY}"]
    docker.import_tar(name, members, *started, owned={"prometheus": NOBODY})


def add_alertmanager_image(docker: Docker, name: str) -> None:
    """Make an image of Debian's Alertmanager with the official one's program, user and folder."""
    package = "prometheus-alertmanager"
    members = {".": debian_root(), "usr/bin/alertmanager": Path(tool(package, package))}
    # The official program has these inside itself.
    members[TEMPLATES] = Path("/") / TEMPLATES
    started = ['ENTRYPOINT ["/bin/alertmanager"]', "WORKDIR /alertmanager", f"USER {NOBODY}"]
    docker.import_tar(name, members, *started, owned={"alertmanager": NOBODY})

"""A pod's only container, run by Docker just as the rendered manifest says.

Read are the image, arguments, environment with the settings' ConfigMap, user and groups, read-only
root, capabilities, volumes, limits, probes and preStop. A field of the container that is not known
here fails the test, so that none is passed over in silence.
"""

import os
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from deploy.kubernetes.manifests import Document
from tests.system.docker_daemon import Docker

_KNOWN = {
    *("name", "image", "imagePullPolicy", "args", "ports", "env", "envFrom", "resources"),
    *("startupProbe", "readinessProbe", "livenessProbe", "lifecycle"),
    *("securityContext", "volumeMounts"),
}
_UNITS = {"Gi": 2**30, "Mi": 2**20}


@dataclass(frozen=True)
class Probe:
    """A probe of the manifest, asked at a published address."""

    url: str
    every_s: float
    timeout_s: float
    failures: int

    def ask(self) -> bool:
        """What the kubelet would take the answer for."""
        try:
            answer = httpx.get(self.url, timeout=self.timeout_s)
        except httpx.TransportError:
            return False
        return 200 <= answer.status_code < 400

    def wait(self) -> list[bool]:
        """Ask as a startup probe does, until it succeeds or has failed too often."""
        asked: list[bool] = []
        while not any(asked) and len(asked) < self.failures:
            time.sleep(self.every_s if asked else 0)
            asked.append(self.ask())
        return asked


class PodContainer:
    """The container of a Deployment's pod.

    Args:
        docker: where it runs.
        objects: all that was rendered beside the Deployment, and itself.
        secrets: name of a Secret to its files.
        folder: for the mounted secrets.
    """

    def __init__(
        self,
        docker: Docker,
        objects: Iterable[Document],
        secrets: Mapping[str, Mapping[str, str]],
        folder: Path,
    ) -> None:
        self._docker = docker
        self._objects = tuple(objects)
        self._secrets = secrets
        self._folder = folder
        self.pod: Document = one(self._objects, "Deployment")["spec"]["template"]["spec"]
        (self.spec,) = self.pod["containers"]
        assert self.spec.keys() <= _KNOWN, self.spec.keys() - _KNOWN
        self.id = ""

    def start(self) -> None:
        """`docker run` it."""
        limits = self.spec["resources"]["limits"]
        options = [
            f"--memory={_bytes(limits['memory'])}",
            # Docker refuses more than there are.
            f"--cpus={min(int(limits['cpu']), os.cpu_count() or 1)}",
            *self._rights(),
            *(f"--env={name}={value}" for name, value in self.environment().items()),
            *self._mounts(),
            *(f"--publish=127.0.0.1::{port['containerPort']}" for port in self.spec["ports"]),
        ]
        arguments = self.spec.get("args", ())
        self.id = self._docker("run", "--detach", *options, self.spec["image"], *arguments)

    def environment(self) -> dict[str, str]:
        """All variables, those of the ConfigMap first."""
        found: dict[str, str] = {}
        for source in self.spec["envFrom"]:
            found |= one(self._objects, "ConfigMap", source["configMapRef"]["name"])["data"]
        for variable in self.spec["env"]:
            if "valueFrom" not in variable:
                found[variable["name"]] = variable["value"]
                continue
            kind, _, resource = variable["valueFrom"]["resourceFieldRef"]["resource"].partition(".")
            found[variable["name"]] = self.spec["resources"][kind][resource]
        return found

    def probe(self, kind: str) -> Probe:
        """The probe of that kind (startup, readiness or liveness)."""
        asked = self.spec[f"{kind}Probe"]
        return Probe(
            self.url(asked["httpGet"]["port"]) + asked["httpGet"]["path"],
            asked["periodSeconds"],
            asked["timeoutSeconds"],
            asked["failureThreshold"],
        )

    def url(self, port: str = "http") -> str:
        """Where the port of that name is published."""
        (number,) = [p["containerPort"] for p in self.spec["ports"] if p["name"] == port]
        return f"http://{self._docker('port', self.id, f'{number}/tcp')}"

    def pre_stop(self) -> subprocess.Popen[bytes]:
        """Begin what the kubelet runs before it sends SIGTERM."""
        command = self.spec["lifecycle"]["preStop"]["exec"]["command"]
        return subprocess.Popen(
            [self._docker.client, "exec", self.id, *command],
            env={**os.environ, **self._docker.env},
        )

    def terminate(self) -> None:
        """Send SIGTERM to its first process."""
        self._docker("kill", "--signal=TERM", self.id)

    def exit_code(self, timeout_s: float) -> int:
        """Wait for its end, at most as long as that."""
        return int(self._docker("wait", self.id, timeout_s=timeout_s))

    def logs(self) -> str:
        """What it wrote."""
        return self._docker("logs", self.id)

    def remove(self) -> None:
        """End it and take its data along."""
        if self.id:
            self._docker("rm", "--force", "--volumes", self.id)

    def _rights(self) -> list[str]:
        pod, own = self.pod["securityContext"], self.spec["securityContext"]
        assert own["allowPrivilegeEscalation"] is own["privileged"] is False
        # RuntimeDefault is the profile that Docker uses unless told otherwise.
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        return [
            f"--user={pod['runAsUser']}:{pod['runAsGroup']}",
            f"--group-add={pod['fsGroup']}",
            f"--read-only={str(own['readOnlyRootFilesystem']).lower()}",
            "--security-opt=no-new-privileges",
            *(f"--cap-drop={name}" for name in own["capabilities"]["drop"]),
            *(f"--cap-add={name}" for name in own["capabilities"].get("add", ())),
        ]

    def _mounts(self) -> list[str]:
        volumes = {volume["name"]: volume for volume in self.pod["volumes"]}
        return [self._mount(volumes[m["name"]], m) for m in self.spec["volumeMounts"]]

    def _mount(self, volume: Mapping[str, Any], mount: Mapping[str, Any]) -> str:
        path = mount["mountPath"]
        if "emptyDir" in volume:
            size = _bytes(volume["emptyDir"]["sizeLimit"])
            # Docker's own are noexec, an emptyDir is not.
            return f"--tmpfs={path}:rw,exec,nosuid,nodev,mode=1777,size={size}"
        source = volume["secret"]
        folder = self._folder / volume["name"]
        folder.mkdir(mode=0o755)
        for name, text in self._secrets[source["secretName"]].items():
            (folder / name).write_text(text)
            # As the kubelet does with an fsGroup: root's, and readable by that group.
            os.chown(folder / name, 0, self.pod["securityContext"]["fsGroup"])
            (folder / name).chmod(source["defaultMode"])
        return f"--volume={folder}:{path}{':ro' if mount.get('readOnly') else ''}"


def one(objects: Iterable[Document], kind: str, name: str | None = None) -> Document:
    """The only object of a kind, or of a kind and name."""
    found = [
        each
        for each in objects
        if each["kind"] == kind and name in (None, each["metadata"]["name"])
    ]
    assert len(found) == 1, f"{len(found)} objects of kind {kind}, name {name}"
    return found[0]


def _bytes(quantity: str) -> int:
    return int(quantity[:-2]) * _UNITS[quantity[-2:]]

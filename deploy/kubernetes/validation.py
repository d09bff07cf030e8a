"""Whether the manifests are valid: rendered, then held against schemas; no cluster is asked.

`python -m deploy.kubernetes.validation FOLDER` (`make manifests`) writes base and overlays there,
one file each, and fails if one of them is not valid. Kubernetes' own kinds are held against its
strict schemas, custom resources against the types that are generated from their definitions; both
come with Python packages. The command takes the oldest and the newest version, the tests take all.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import kubernetes_validate
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor
from pydantic import BaseModel, ValidationError

from deploy.kubernetes.manifests import SOURCES, Document, ManifestError, documents, render

VERSIONS = tuple(f"1.{minor}" for minor in range(27, 38))
"""Of Kubernetes. 1.27 is the first that knows all that is asked for without a feature gate."""
ENDS = (VERSIONS[0], VERSIONS[-1])

_CUSTOM: dict[tuple[str, str], type[BaseModel]] = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"): ServiceMonitor,
    ("monitoring.coreos.com/v1", "PrometheusRule"): PrometheusRule,
    ("keda.sh/v1alpha1", "ScaledObject"): ScaledObject,
}


def problems(objects: Sequence[Document], version: str) -> Iterator[str]:
    """Yield what is wrong with each object, by the schemas.

    Args:
        objects: of one overlay.
        version: of Kubernetes, such as 1.30.
    """
    for found in objects:
        custom = _CUSTOM.get((found["apiVersion"], found["kind"]))
        problem = _custom_problem(found, custom) if custom else _own_problem(found, version)
        if problem is not None:
            yield f"{found['kind']}/{found['metadata']['name']} ({version}): {problem}"


def _own_problem(found: Document, version: str) -> str | None:
    try:
        kubernetes_validate.validate(found, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        return str(error.message)
    return None


def _custom_problem(found: Document, model: type[BaseModel]) -> str | None:
    """The types ignore what they do not know, so it is looked for in what they kept."""
    try:
        kept = model.model_validate(found).model_dump(
            mode="json", by_alias=True, exclude_unset=True
        )
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return _difference(found, kept)


def _difference(given: object, kept: object, path: str = "") -> str | None:
    """Where the first of two trees has something that the second does not."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for name, value in given.items():
            if name not in kept:
                return f"{path}.{name}: no such field".removeprefix(".")
            if (problem := _difference(value, kept[name], f"{path}.{name}")) is not None:
                return problem
        return None
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        pairs = enumerate(zip(given, kept, strict=True))
        return next(filter(None, (_difference(a, b, f"{path}.{n}") for n, (a, b) in pairs)), None)
    return None if given == kept else f"{path}: {given!r} is read as {kept!r}".removeprefix(".")


def main(folder: Path) -> int:
    """Write base and overlays to `folder`, say what is wrong with them; returns the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    failed = False
    for source in SOURCES:
        text = render(source)
        (folder / f"{source.name}.yaml").write_text(text)
        objects = documents(text)
        found = [each for version in ENDS for each in problems(objects, version)]
        failed |= bool(found)
        print(f"{source.name}: {len(objects)} objects, {len(found)} problems", *found, sep="\n  ")
    print(f"in {folder}, for Kubernetes {' and '.join(ENDS)}")
    return int(failed)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m deploy.kubernetes.validation FOLDER")
    try:
        sys.exit(main(Path(sys.argv[1])))
    except ManifestError as error:
        sys.exit(f"error: {error}")

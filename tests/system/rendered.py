"""The manifests of deploy/kubernetes as kubectl renders them, for the tests that look at them."""

import pytest

from deploy.kubernetes.manifests import SOURCES, Document, documents, render
from tests.system.kubectl import kubectl
from tests.system.pod_container import one

NAMES = [source.name for source in SOURCES]
FOR_OTHERS = ["cpu", "gpu"]
"""Overlays of servers that strangers can reach."""


@pytest.fixture(scope="session")
def rendered() -> dict[str, list[Document]]:
    """Base and overlays, by name."""
    return {source.name: documents(render(source, kubectl())) for source in SOURCES}


@pytest.fixture(params=NAMES)
def objects(request: pytest.FixtureRequest, rendered: dict[str, list[Document]]) -> list[Document]:
    """The objects of each of them in turn."""
    return rendered[request.param]


@pytest.fixture
def pod_spec(objects: list[Document]) -> Document:
    """What the Deployment makes pods of."""
    spec: Document = one(objects, "Deployment")["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def container_spec(pod_spec: Document) -> Document:
    """The pod's only container."""
    (found,) = pod_spec["containers"]
    return dict(found)

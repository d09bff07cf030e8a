"""The server's image, built once for all tests that run it.

By default the base image already holds the pinned packages of this environment, so that the build
installs only the wheel; TOCOM_SYSTEM_FULL_IMAGE=1 (`make test-image-cuda`) starts from a bare
Python and fetches all of them.
"""

import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.system.docker_daemon import Docker, add_python_image, private_daemon
from tests.system.machine import ROOT, missing
from tests.system.pinned import runtime_entries

FULL = os.environ.get("TOCOM_SYSTEM_FULL_IMAGE") == "1"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
IMAGE: str = COMPOSE["services"]["server"]["image"]


@pytest.fixture(scope="session")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """A daemon that holds the base image."""
    if not FULL and sys.version_info[:2] != (3, 11):
        missing("the packages of this environment fit the image only if it runs Python 3.11")
    with private_daemon(tmp_path_factory.mktemp("docker")) as docker:
        add_python_image(docker, {} if FULL else runtime_entries())
        yield docker


@pytest.fixture(scope="session")
def image(docker: Docker) -> str:
    """The server's image, built from the checkout."""
    started = time.monotonic()
    docker("build", "--tag", IMAGE, ROOT, timeout_s=5400)
    size = int(docker("image", "inspect", "--format", "{{.Size}}", IMAGE))
    print(f"\n{IMAGE}: {size / 1e9:.2f} GB, built in {time.monotonic() - started:.0f} s")
    return IMAGE

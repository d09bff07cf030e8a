"""The Python client's whole surface against a real server over a socket."""

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

import tocom_client
from server.api_keys import new_key
from tests.client.scripted import Kind, ask
from tests.integration.conftest import DEGREES, LABELS
from tocom_client import AsyncClient, Client, RetryPolicy

if TYPE_CHECKING:
    from tests.integration.conftest import Server

both = pytest.mark.parametrize("kind", ["sync", "async"])


def client_of(kind: Kind, server: "Server", **options: Any) -> Any:
    """Either client of this server."""
    options.setdefault("api_key", "")
    return (Client if kind == "sync" else AsyncClient)(server.url, **options)


@pytest.fixture
def left_alone(server: "Server") -> Iterator["Server"]:
    """The shared server, its dial handed back afterwards."""
    yield server
    with Client(server.url, api_key="") as client:
        client.auto()
        client.bound(0, DEGREES)


@both
def test_every_kind_of_image_gets_the_same_classes(
    kind: Kind, left_alone: "Server", photo: bytes, tmp_path: Path
) -> None:
    """Path, bytes, open file and image of Pillow's; the degree is held, so that they must agree."""
    path = tmp_path / "cat.jpg"
    path.write_bytes(photo)
    ask(client_of(kind, left_alone), "pin", 0)
    opened = Image.open(io.BytesIO(photo))
    opened.load()
    found = [
        ask(
            client_of(kind, left_alone), "classify", source, top_k=3, deadline_s=60, priority="high"
        )
        for source in (path, str(path), photo, io.BytesIO(photo), opened)
    ]
    for one in found:
        assert [p.label for p in one.predictions] == [p.label for p in found[0].predictions]
        assert one.top.score == pytest.approx(found[0].top.score, abs=1e-3)
        assert len(one.predictions) == 3 and one.top.label == LABELS[one.top.index]
        assert one.r == 0 and one.batch_size >= 1 and one.compute_ms > 0 and one.queue_ms >= 0
        assert len(one.request_id) == 32
    assert found[0].filename == "cat.jpg" and found[2].filename is None


@both
def test_a_request_keeps_its_name(kind: Kind, server: "Server", photo: bytes) -> None:
    """In the answer, in errors, and in the server's log."""
    found = ask(client_of(kind, server), "classify", photo, request_id=f"named-{kind}")
    assert found.request_id == f"named-{kind}"
    with pytest.raises(tocom_client.InvalidImage) as caught:
        ask(client_of(kind, server), "classify", b"no image", request_id=f"bad-{kind}")
    assert (caught.value.status, caught.value.type) == (400, "/problems/not-an-image")
    assert caught.value.request_id == f"bad-{kind}" and f"bad-{kind}" in str(caught.value)


@both
def test_many_files_with_bad_ones_among_them(
    kind: Kind, server: "Server", photo: bytes, tmp_path: Path
) -> None:
    """Their order, and each bad one's reason."""
    images: list[Any] = [photo] * 11
    (tmp_path / "notes.jpg").write_text("I am no photograph")
    images[2], images[7] = tmp_path / "notes.jpg", tmp_path / "missing.jpg"
    told: list[tocom_client.Progress] = []
    outcomes = ask(
        client_of(kind, server), "classify_many", images, per_request=3, on_progress=told.append
    )
    assert [outcome.place for outcome in outcomes] == list(range(11))
    bad = {outcome.place: outcome.problem for outcome in outcomes if outcome.error}
    assert bad.keys() == {2, 7}
    assert bad[2].type == "/problems/not-an-image" and bad[2].status == 400
    assert "No such file" in bad[7].detail and outcomes[7].filename == "missing.jpg"
    assert (told[-1].done, told[-1].failed, told[-1].total) == (11, 2, 11)
    assert {outcome.classification.model for outcome in outcomes if outcome.classification} == {
        ask(client_of(kind, server), "model").name
    }


@both
def test_the_dial(kind: Kind, left_alone: "Server") -> None:
    """Pin, bounds, shadow and auto, and what is refused."""

    def dial(method: str, *args: Any, **options: Any) -> tocom_client.CompressionStatus:
        found: tocom_client.CompressionStatus
        found = ask(client_of(kind, left_alone), method, *args, **options)
        return found

    assert [level.r for level in dial("compression").levels] == list(range(DEGREES + 1))
    pinned = dial("pin", 8, ttl_s=600)
    assert (pinned.mode, pinned.r) == ("pinned", 8) and 0 < (pinned.pinned_ttl_s or 0) <= 600
    assert pinned.last_switch is None or pinned.last_switch.at.tzinfo is not None
    shadow = dial("shadow", 3, ttl_s=60)
    assert (shadow.mode, shadow.r) == ("shadow", 3) and shadow.shadow is not None
    assert dial("auto").mode == "auto"
    bounded = dial("bound", 2, 6)
    assert (bounded.min_r, bounded.max_r) == (2, 6)
    assert dial("bound", max_r=7).min_r == 2
    with pytest.raises(tocom_client.InvalidParameter, match="0 to 12"):
        dial("pin", 99)
    with pytest.raises(tocom_client.InvalidParameter, match="nothing to change"):
        dial("bound")


@both
def test_what_is_served(kind: Kind, server: "Server") -> None:
    """Model, readiness and metrics."""
    model = ask(client_of(kind, server), "model")
    assert model.labels == LABELS and model.input_size == (3, 32, 32)
    assert model.bank.num_groups == model.max_r == DEGREES and len(model.digest) == 64
    assert ask(client_of(kind, server), "ready") is True
    ask(client_of(kind, server), "wait_until_ready", 5)
    assert "\ntocom_slo_seconds 20.0\n" in ask(client_of(kind, server), "metrics")


@both
def test_a_deadline_that_cannot_be_kept(kind: Kind, server: "Server", photo: bytes) -> None:
    """Whoever notices first, server or client, it is the same error."""
    with pytest.raises(tocom_client.DeadlineExceeded):
        ask(client_of(kind, server), "classify", photo, deadline_s=0.002)


@both
def test_keys(kind: Kind, serve: Callable[..., "Server"], photo: bytes, tmp_path: Path) -> None:
    """Without one, with an unknown one, with one that lacks the scope, and with a good one."""
    key = new_key()
    (tmp_path / "keys").write_text(f"tests inference {key}\n")
    (tmp_path / "keys").chmod(0o600)
    server = serve(f"--api-keys-file={tmp_path / 'keys'}", "--slo-ms=20000")
    for wrong in ("", new_key()):
        with pytest.raises(tocom_client.Unauthorized) as caught:
            ask(client_of(kind, server, api_key=wrong), "classify", photo)
        assert caught.value.status == 401 and caught.value.attempts == 1
    with pytest.raises(tocom_client.Unauthorized, match="control") as caught:
        ask(client_of(kind, server, api_key=key), "pin", 3)
    assert caught.value.type == "/problems/missing-scope"
    assert ask(client_of(kind, server, api_key=key), "classify", photo).top.label in LABELS
    assert ask(client_of(kind, server), "ready") is True


@both
def test_reloads(kind: Kind, serve: Callable[..., "Server"], model_file: Path) -> None:
    """One that ends well, one of a name that is not there, one that is waited for by looking."""
    server = serve(f"--models-dir={model_file.parent}", "--no-idle-profiling")
    status = ask(client_of(kind, server), "reload", bank="none", min_agreement=0.0, wait_s=100)
    assert status.state == "done" and status.seconds > 0
    assert ask(client_of(kind, server), "model").bank is None
    with pytest.raises(tocom_client.InvalidParameter):
        ask(client_of(kind, server), "reload", "nobody-has-this")
    begun = ask(client_of(kind, server), "reload", bank="auto")
    assert begun.state in ("loading", "warming_up", "trying")
    with pytest.raises(tocom_client.ReloadInProgress):
        ask(client_of(kind, server), "reload", bank="none")


def test_an_overload_is_waited_out(serve: Callable[..., "Server"], photo: bytes) -> None:
    """More images at once than a tiny queue holds: some are refused, and in the end all are served.

    Nobody tells the clients how long the queue is; what they know is the 429 and its Retry-After.
    """
    server = serve("--queue-size=2", "--max-batch-size=1", "--slo-ms=20000", "--no-idle-profiling")
    waits: list[float] = []

    async def wait(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(seconds / 20)

    async def main() -> list[tocom_client.Classification]:
        patient = RetryPolicy(attempts=200, budgeted=False)
        async with AsyncClient(server.url, api_key="", retry=patient, sleep=wait) as client:
            return await asyncio.gather(*(client.classify(photo, top_k=1) for _ in range(40)))

    assert len(asyncio.run(main())) == 40
    assert waits and min(waits) >= 1.0


def test_the_example_of_the_package_runs(server: "Server", photo: bytes, tmp_path: Path) -> None:
    """The lines in its docstring, as a program of their own."""
    (tmp_path / "photo.jpg").write_bytes(photo)
    lines = [line[4:] for line in (tocom_client.__doc__ or "").splitlines() if line[:4] == " " * 4]
    code = "\n".join(lines).replace("http://127.0.0.1:8000", server.url).replace("=2)", "=60)")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.strip() in LABELS, done.stderr
    assert json.dumps(done.stderr) == '""'

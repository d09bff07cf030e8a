"""The HTTP contract of the design, line by line, over a real socket."""

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

if TYPE_CHECKING:
    from tests.integration.conftest import Server

TEXT = ("notes.jpg", b"I am no photograph", "image/jpeg")


@pytest.fixture
def client(server: "Server") -> Iterator[httpx.Client]:
    """A client of the shared server, which is left in mode auto."""
    with server.client() as client:
        yield client
        client.put("/compression?mode=auto&min_r=0&max_r=12").raise_for_status()


def problem(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """Check that an answer is a problem document of this kind and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document["type"] == f"/problems/{slug}"
    assert document["status"] == status
    assert document["title"] and len(document["detail"]) > 20
    assert document["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text and ".py" not in response.text
    return document


def test_one_file_is_classified(client: httpx.Client, photo: bytes) -> None:
    """A multipart file gets the promised answer, with five predictions that are probabilities."""
    answer = client.post("/classify", files={"file": ("cat.jpg", photo)})
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"request_id", "model", "results"}
    (result,) = body["results"]
    assert set(result) == {
        *("filename", "r", "batch_size", "queue_ms", "compute_ms", "predictions"),
    }
    assert result["filename"] == "cat.jpg" and result["batch_size"] == 1
    assert result["queue_ms"] >= 0 and result["compute_ms"] > 0
    scores = [p["score"] for p in result["predictions"]]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True) and sum(scores) <= 1
    assert all(p["label"] == f"class {p['index']}" for p in result["predictions"])


@pytest.mark.parametrize("content_type", ["image/jpeg", "image/png", "IMAGE/JPEG; q=1", "image/x"])
def test_raw_body_is_classified(client: httpx.Client, photo: bytes, content_type: str) -> None:
    """Any image type announces a raw image; the content decides what it is."""
    answer = client.post("/classify", content=photo, headers={"Content-Type": content_type})
    assert answer.status_code == 200
    assert answer.json()["results"][0]["filename"] is None


def test_chunked_body_is_classified(client: httpx.Client, photo: bytes) -> None:
    """A body without a Content-Length works too."""
    pieces = (photo[i : i + 7000] for i in range(0, len(photo), 7000))
    answer = client.post("/classify", content=pieces, headers={"Content-Type": "image/jpeg"})
    assert answer.status_code == 200


def test_all_forms_give_the_same_scores(client: httpx.Client, photo: bytes) -> None:
    """Raw or multipart, alone or beside others: the same image gets the same answer."""
    client.put("/compression?r=0")
    raw = client.post("/classify", content=photo, headers={"Content-Type": "image/jpeg"}).json()
    both = client.post("/classify", files=[("file", photo), ("file", photo)]).json()
    results = [*raw["results"], *both["results"]]
    first = results[0]["predictions"]
    for result in results[1:]:
        for a, b in zip(first, result["predictions"], strict=True):
            assert a["index"] == b["index"] and a["score"] == pytest.approx(b["score"], abs=1e-5)


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (3, 3), (10, 10), (1000, 10)])
def test_top_k_is_capped_at_the_classes(
    client: httpx.Client, photo: bytes, top_k: int, count: int
) -> None:
    """More classes than there are is no error."""
    answer = client.post(f"/classify?top_k={top_k}", files={"file": photo})
    assert len(answer.json()["results"][0]["predictions"]) == count


def test_an_unreadable_file_does_not_cost_the_others(client: httpx.Client, photo: bytes) -> None:
    """Results come in the order of the files; a bad one carries its problem."""
    files: Any = [("file", ("a.jpg", photo)), ("file", TEXT), ("file", ("c.jpg", photo))]
    answer = client.post("/classify", files=files)
    assert answer.status_code == 200
    first, bad, last = answer.json()["results"]
    assert first["predictions"] and last["predictions"]
    assert bad["filename"] == "notes.jpg" and set(bad) == {"filename", "problem"}
    assert bad["problem"]["status"] == 400
    assert bad["problem"]["type"] == "/problems/not-an-image"


def test_if_no_file_succeeds_the_first_problem_is_the_answer(client: httpx.Client) -> None:
    """Two unreadable files give one 400."""
    problem(client.post("/classify", files=[("file", TEXT), ("file", TEXT)]), 400, "not-an-image")


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"\xff\xd8\xff\xe0 no jpeg", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", b"GIF89a"],
)
def test_garbage_is_a_bad_image(client: httpx.Client, data: bytes) -> None:
    """Empty, disguised and broken files are 400, raw or as form."""
    problem(client.post("/classify", files={"file": ("x.jpg", data)}), 400, "not-an-image")
    headers = {"Content-Type": "image/jpeg"}
    problem(client.post("/classify", content=data, headers=headers), 400, "not-an-image")


def test_truncated_photo_is_a_bad_image(client: httpx.Client, photo: bytes) -> None:
    """Half a JPEG is refused with the advice to send all of it."""
    answer = client.post("/classify", files={"file": photo[: len(photo) // 2]})
    assert "truncated" in problem(answer, 400, "not-an-image")["detail"]


@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/octet-stream", "application/json", "video/mp4"],
)
def test_other_media_types_are_refused(
    client: httpx.Client, photo: bytes, content_type: str | None
) -> None:
    """415 shows how to send an image."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = client.post("/classify", content=photo, headers=headers)
    assert "curl -F file=@" in problem(answer, 415, "unsupported-media-type")["detail"]


def test_form_without_file_says_how(client: httpx.Client, photo: bytes) -> None:
    """Another part name is 422 and the message names both."""
    detail = problem(client.post("/classify", files={"image": photo}), 422, "bad-parameter")[
        "detail"
    ]
    assert "'image'" in detail and "'file'" in detail


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b--\r\n",
        b"nonsense",
        b"--b\r\nContent-Disposition: form-data; name=file\r\n\r\nabc",
    ],
)
def test_malformed_forms_are_refused(client: httpx.Client, body: bytes) -> None:
    """An empty, cut or wrong multipart body is the client's mistake."""
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = client.post("/classify", content=body, headers=headers)
    assert answer.status_code in (400, 422) and answer.json()["type"].startswith("/problems/")


def test_form_without_boundary_is_refused(client: httpx.Client) -> None:
    """A hand-made Content-Type without boundary is explained."""
    answer = client.post("/classify", content=b"x", headers={"Content-Type": "multipart/form-data"})
    assert "boundary" in problem(answer, 400, "not-an-image")["detail"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("top_k=0", "greater than or equal to 1"),
        ("top_k=many", "top_k='many'"),
        ("deadline_ms=0", "greater than 0"),
        ("deadline_ms=-5", "deadline_ms='-5'"),
        ("deadline_ms=nan", "deadline_ms='nan'"),
        ("max_r=-1", "greater than or equal to 0"),
        ("priority=urgent", "'high', 'normal' or 'low'"),
        ("topk=3", "no query parameter 'topk'"),
    ],
)
def test_bad_query_parameters_are_named(
    client: httpx.Client, photo: bytes, query: str, said: str
) -> None:
    """422 names the parameter, its value and what is allowed."""
    answer = client.post(f"/classify?{query}", files={"file": photo})
    assert said in problem(answer, 422, "bad-parameter")["detail"]


@pytest.mark.parametrize("priority", ["high", "normal", "low"])
def test_priorities_are_accepted(client: httpx.Client, photo: bytes, priority: str) -> None:
    """Each documented priority works."""
    assert client.post(f"/classify?priority={priority}", files={"file": photo}).status_code == 200


def test_model_tells_what_is_served(client: httpx.Client) -> None:
    """Name, labels, input, transform, digests and bank."""
    model = client.get("/model").json()
    assert model["labels"][:2] == ["class 0", "class 1"] and model["input_size"] == [3, 32, 32]
    assert {"interpolation", "crop_pct", "mean", "std"} <= set(model["transform"])
    assert re.fullmatch("[0-9a-f]{64}", model["digest"])
    assert re.fullmatch("[0-9a-f]{64}", model["bank"]["digest"])
    assert model["bank"]["num_groups"] == model["max_r"] == 12
    assert model["r_source"] == 0


def test_compression_shows_levels(client: httpx.Client) -> None:
    """Every degree is listed with throughput and accuracy (null where nobody knows)."""
    state = client.get("/compression").json()
    assert set(state) == {
        *("mode", "r", "r_source", "min_r", "max_r", "pinned_ttl_s", "levels", "last_switch"),
        *("min_accuracy", "expected_accuracy", "shadow", "steady_r", "capacity_demand"),
    }
    assert [level["r"] for level in state["levels"]] == list(range(13))
    for level in state["levels"]:
        assert level["relative_throughput"] > 0 and level["images_per_s"] > 0
        assert level["batch_size"] >= 1 and level["expected_accuracy"] is None


def test_put_pins_and_answers_like_get(client: httpx.Client, photo: bytes) -> None:
    """r=12 holds from the next batch on; mode=auto ends it."""
    pinned = client.put("/compression?r=12").json()
    assert (pinned["mode"], pinned["r"]) == ("pinned", 12)
    seen = client.get("/compression").json()
    assert (seen["mode"], seen["r"]) == ("pinned", 12)
    assert client.post("/classify", files={"file": photo}).json()["results"][0]["r"] == 12
    assert client.put("/compression?mode=auto").json()["mode"] == "auto"


def test_last_switch_is_a_time_of_day(client: httpx.Client) -> None:
    """The last switch says from, to, why and when, in RFC 3339."""
    client.put("/compression?r=3")
    switch = client.put("/compression?r=7").json()["last_switch"]
    assert (switch["r_from"], switch["r_to"], switch["reason"]) == (3, 7, "pinned")
    age = datetime.now(UTC) - datetime.fromisoformat(switch["at"])
    assert timedelta(seconds=-1) < age < timedelta(seconds=10)


def test_pin_with_ttl_ends_by_itself(client: httpx.Client) -> None:
    """ttl_s counts down, and then the controller has the degree again."""
    pinned = client.put("/compression?r=5&ttl_s=0.2").json()
    assert 0 < pinned["pinned_ttl_s"] <= 0.2
    deadline = datetime.now(UTC) + timedelta(seconds=5)
    while client.get("/compression").json()["mode"] == "pinned":
        assert datetime.now(UTC) < deadline


def test_bounds_hold_the_controller(client: httpx.Client, photo: bytes) -> None:
    """min_r lifts the degree at once; the answer shows the bounds."""
    client.put("/compression?r=0")
    state = client.put("/compression?mode=auto&min_r=4&max_r=6").json()
    assert (state["mode"], state["min_r"], state["max_r"], state["r"]) == ("auto", 4, 6, 4)
    assert client.post("/classify", files={"file": photo}).json()["results"][0]["r"] == 4


def test_a_requests_own_max_r_beats_a_pin(client: httpx.Client, photo: bytes) -> None:
    """No more compression than the request accepts; less where that much gains nothing here."""
    client.put("/compression?r=12")
    answer = client.post("/classify?max_r=2", files={"file": photo})
    assert answer.json()["results"][0]["r"] <= 2


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "nothing to change"),
        ("r=13", "0 to 12"),
        ("r=-1", "0 to 12"),
        ("r=x", "r='x'"),
        ("mode=fast", "'auto'"),
        ("r=3&mode=auto", "one of the two"),
        ("r=3&max_r=5", "two requests"),
        ("ttl_s=5", "needs r"),
        ("mode=auto&ttl_s=5", "needs r"),
        ("r=3&ttl_s=0", "greater than 0"),
        ("min_r=9&max_r=2", "min_r=9"),
        ("max_r=99", "0 to 12"),
        ("ttl=5&r=3", "no query parameter 'ttl'"),
    ],
)
def test_senseless_compression_is_refused(client: httpx.Client, query: str, said: str) -> None:
    """422 with the allowed range, and what the operator had set stays (a policy may move `r`)."""
    client.put("/compression?r=3")
    before = client.get("/compression").json()
    answer = client.put(f"/compression?{query}")
    assert said in problem(answer, 422, "bad-parameter")["detail"]
    after = client.get("/compression").json()
    kept = ("mode", "r", "min_r", "max_r", "pinned_ttl_s")
    assert [after[key] for key in kept] == [before[key] for key in kept]


def test_health(client: httpx.Client) -> None:
    """Alive and ready."""
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_metrics_count_each_request_once(client: httpx.Client, photo: bytes) -> None:
    """A request more is one more in its outcome, and in no other."""

    def outcomes() -> dict[str, float]:
        found = re.findall(
            r'^tocom_requests_total\{outcome="(\w+)"\} (\S+)$', client.get("/metrics").text, re.M
        )
        return {name: float(value) for name, value in found}

    before = outcomes()
    client.post("/classify", files={"file": photo})
    client.post("/classify", files={"file": b"nothing"})
    client.post("/classify?top_k=0", files={"file": photo})
    after = outcomes()
    grown = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert grown == {"ok": 1, "bad_image": 1, "bad_parameter": 1}


def test_docs_and_root(client: httpx.Client) -> None:
    """/docs is there, / leads to it, and the schema documents bodies and problems."""
    assert client.get("/docs").status_code == 200
    assert "<title>ToCom" in client.get("/").text
    post = client.get("/openapi.json").json()["paths"]["/classify"]["post"]
    assert {"multipart/form-data", "image/jpeg"} <= set(post["requestBody"]["content"])
    for status in ("400", "413", "415", "422", "429", "500", "503", "504"):
        assert list(post["responses"][status]["content"]) == ["application/problem+json"]


def test_unknown_paths_and_methods_are_problems(client: httpx.Client) -> None:
    """404 and 405 have the same form as all other problems."""
    problem(client.get("/nothing/here"), 404, "not-found")
    answer = client.get("/classify")
    problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "POST"


def test_request_id_is_the_clients_or_new(client: httpx.Client) -> None:
    """A plain X-Request-ID comes back; a strange one is replaced."""
    given = client.get("/healthz", headers={"X-Request-ID": "trace-1.a"})
    assert given.headers["x-request-id"] == "trace-1.a"
    for strange in ("a b", "x" * 500, "<script>", ""):
        answer = client.get("/healthz", headers={"X-Request-ID": strange})
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


@pytest.mark.parametrize("orientation", [1, 6])
def test_exif_orientation_reaches_the_model_upright(
    client: httpx.Client, photo: bytes, orientation: int
) -> None:
    """A photo stored sideways with the right tag gets the same scores as the upright one."""
    client.put("/compression?r=0")
    upright = Image.open(io.BytesIO(photo)).convert("RGB")
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, "PNG", exif=exif)
    plain = io.BytesIO()
    upright.save(plain, "PNG")
    one, other = (
        client.post("/classify?top_k=10", files={"file": b.getvalue()}).json()["results"][0]
        for b in (buffer, plain)
    )
    scores = [{p["index"]: p["score"] for p in r["predictions"]} for r in (one, other)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_taken_port_is_one_clear_line(server: "Server") -> None:
    """A second server on the same port fails at once, with advice and without a traceback."""
    port = server.url.rsplit(":", 1)[1]
    run = subprocess.run(
        [sys.executable, "-m", "server.cli", "serve", f"--port={port}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert f"cannot listen on 127.0.0.1:{port}" in run.stderr and "--port 0" in run.stderr


def test_metrics_pass_promtool(client: httpx.Client, tmp_path: Any) -> None:
    """Prometheus' own linter has nothing to say."""
    try:
        lint = subprocess.run(
            ["promtool", "check", "metrics"],
            input=client.get("/metrics").text,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except FileNotFoundError:
        pytest.skip("promtool is not installed")
    assert (lint.returncode, lint.stdout + lint.stderr) == (0, "")

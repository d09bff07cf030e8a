"""Records and errors beside what the server says they are, images of every kind, the package."""

import dataclasses
import inspect
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from pydantic import BaseModel

import tocom_client
from server import errors as server_errors
from server import reload_schemas, schemas
from server.settings_sources import OTHER_VARIABLES
from tocom_client import AsyncClient, Client, InvalidImage, UnexpectedAnswer, errors, results
from tocom_client.images import encode
from tocom_client.json_records import decode
from tocom_client.transport import TimeLeft, loss_from

PAIRS = {
    schemas.Problem: results.Problem,
    schemas.Prediction: results.Prediction,
    schemas.BankInfo: results.BankInfo,
    schemas.ModelInfo: results.ModelInfo,
    schemas.LiveAgreement: results.LiveAgreement,
    schemas.Level: results.Level,
    schemas.ShadowDecision: results.ShadowDecision,
    schemas.Switch: results.Switch,
    schemas.CompressionStatus: results.CompressionStatus,
    reload_schemas.ReloadStatus: results.ReloadStatus,
    schemas.ImageResult: results.Classification,
}


@pytest.mark.parametrize("schema", PAIRS, ids=lambda schema: schema.__name__)
def test_records_have_what_the_server_says(schema: type[BaseModel]) -> None:
    """Every field of the contract, and none that it does not know."""
    own = {field.name for field in dataclasses.fields(PAIRS[schema])}
    own -= {"model", "request_id"} if schema is schemas.ImageResult else set()
    assert own == set(schema.model_fields)


def all_kinds(kind: type[server_errors.ServeError]) -> set[str]:
    """The problem types of a class and of all below it, those of deployments left out."""
    below = [k for k in kind.__subclasses__() if k.__module__.startswith("server.")]
    return {kind.type}.union(*map(all_kinds, below))


def test_every_problem_of_the_server_has_an_error() -> None:
    """And there is none for a problem that the server does not know."""
    assert errors.known_types() == all_kinds(server_errors.ServeError)


def test_errors_stand_in_the_docstring_s_tree() -> None:
    """Each class is drawn, exported, and travels between processes."""
    found = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.TocomClientError)
    ]
    assert len(found) == 14
    for kind in found:
        assert f" {kind.__name__} " in f"{errors.__doc__} TocomClientError "
        assert kind.__name__ in tocom_client.__all__
        error = kind("detail", status=400, request_id="id", retry_after_s=2.0)
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.retry_after_s) == (kind, str(error), 2.0)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, errors.Unauthorized),
        (403, errors.Unauthorized),
        (418, errors.Refused),
        (429, errors.Overloaded),
        (502, errors.ServerFailed),
        (503, errors.NotReady),
        (504, errors.DeadlineExceeded),
        (302, errors.UnexpectedAnswer),
    ],
)
def test_an_unknown_problem_is_known_by_its_status(status: int, kind: type) -> None:
    """Of a newer server, or of a proxy."""
    assert errors.error_class("/problems/of-tomorrow", status) is kind


def test_public_names_are_all_there() -> None:
    """And every record that a method can return is one of them."""
    for name in tocom_client.__all__:
        assert getattr(tocom_client, name) is not None
    assert {kind.__name__ for kind in PAIRS.values()} <= set(tocom_client.__all__)


def test_both_clients_have_the_same_methods() -> None:
    """Same names, same arguments, same defaults; only the waiting differs."""
    names = {name for name in vars(Client) if not name.startswith("_")}
    async_names = {name for name in vars(AsyncClient) if not name.startswith("_")}
    assert async_names - {"aclose"} == names - {"close"} and len(names) == 13
    for name in sorted(names - {"close"}):
        ours = inspect.signature(getattr(Client, name)).parameters
        theirs = inspect.signature(getattr(AsyncClient, name)).parameters
        assert list(ours) == list(theirs), name
        for parameter in ours:
            assert ours[parameter].default == theirs[parameter].default, (name, parameter)
            assert ours[parameter].kind == theirs[parameter].kind, (name, parameter)


def test_it_needs_nothing_but_httpx() -> None:
    """Neither the server nor PyTorch nor pydantic is loaded with it."""
    code = (
        "import sys, tocom_client; "
        "sys.exit(', '.join({'server', 'tocom_core', 'torch', 'pydantic', 'numpy', 'PIL'} "
        "& set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_server_knows_the_clients_variables() -> None:
    """It does not warn of them where both run in one environment."""
    assert {"TOCOM_URL", "TOCOM_API_KEY"} <= OTHER_VARIABLES


SWITCH = {"r_from": 0, "r_to": 4, "reason": "latency", "at": "2026-01-02T03:04:05.5Z"}


def test_a_record_is_read_with_what_a_newer_server_adds() -> None:
    """Dates are dates, and what is not known is passed over."""
    found = decode(results.Switch, {**SWITCH, "of_tomorrow": 1})
    assert found.at.isoformat() == "2026-01-02T03:04:05.500000+00:00"


@pytest.mark.parametrize(
    ("kind", "data", "said"),
    [
        (results.Switch, [], "the answer: expected an object, found '[]'"),
        (results.Switch, {**SWITCH, "r_to": "4"}, "the answer.r_to: expected int, found '4'"),
        (results.Switch, {**SWITCH, "r_to": True}, "the answer.r_to: expected int"),
        (results.Switch, {**SWITCH, "r_to": 1.5}, "the answer.r_to: expected int"),
        (results.Switch, {**SWITCH, "at": "noon"}, "the answer.at: expected a date and time"),
        (results.Switch, {**SWITCH, "at": None}, "the answer.at: expected a date and time"),
        (results.Prediction, {"label": "cat", "index": 0}, "has no 'score'"),
        (results.Classification, {"predictions": [3]}, "predictions[0]: expected an object"),
        (results.Classification, {"predictions": None}, "predictions: expected a list"),
    ],
)
def test_what_does_not_fit_is_said_with_its_place(kind: type, data: Any, said: str) -> None:
    """Rather than half a record."""
    with pytest.raises(UnexpectedAnswer) as caught:
        decode(kind, data)
    assert said in str(caught.value)


def test_input_sizes_are_three_numbers() -> None:
    """A tuple of fixed length is checked for it."""
    info = schemas.ModelInfo(
        **{name: name for name in ("name", "architecture", "digest", "device", "dtype", "backend")},
        labels=["a", "b"],
        input_size=(3, 32, 32),
        transform={"mean": [0.5]},
        method="merge",
        prop_attn=True,
        r_source=0,
        max_r=8,
        bank=None,
    ).model_dump(mode="json")
    assert decode(results.ModelInfo, info).input_size == (3, 32, 32)
    with pytest.raises(UnexpectedAnswer, match="input_size: expected 3 values"):
        decode(results.ModelInfo, {**info, "input_size": [3, 32]})


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_bytes_go_as_they_are(format: str, tmp_path: Path) -> None:
    """From memory, a file, a path or a path's text, with a type that says it is an image."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(buffer, format)
    data = buffer.getvalue()
    path = tmp_path / "some.image"
    path.write_bytes(data)
    kind = {"TIFF": "unknown"}.get(format, format.lower())
    for source in (data, bytearray(data), memoryview(data), io.BytesIO(data), path, str(path)):
        found = encode(source)
        assert (found.data, found.media_type) == (data, f"image/{kind}")
        assert found.filename == ("some.image" if isinstance(source, str | Path) else None)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "F"])
def test_images_of_pillow_become_png_without_loss(mode: str) -> None:
    """Also in modes that PNG does not have."""
    image = Image.linear_gradient("L").resize((16, 16)).convert(mode)
    found = encode(image)
    assert found.media_type == "image/png"
    again = Image.open(io.BytesIO(found.data))
    wanted = image if again.mode == mode else image.convert("RGB")
    assert again.convert("RGBA").tobytes() == wanted.convert("RGBA").tobytes()


def test_the_orientation_of_a_photograph_is_kept(tmp_path: Path) -> None:
    """The server turns what it gets; what Pillow has opened is not turned yet."""
    image, path = Image.new("RGB", (8, 4)), tmp_path / "turned.jpg"
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    found = encode(Image.open(path))
    assert Image.open(io.BytesIO(found.data)).getexif()[0x0112] == 6
    assert found.filename == "turned.jpg"


def test_what_holds_no_image_is_refused(tmp_path: Path) -> None:
    """A file that is not there is an error of the image's, a number one of the program's."""
    with pytest.raises(InvalidImage, match="No such file or directory"):
        encode(tmp_path / "missing.jpg")
    with pytest.raises(InvalidImage, match="Is a directory"):
        encode(tmp_path)
    with pytest.raises(InvalidImage, match="null byte"):
        encode("a\0b")
    for source in (3, None, io.StringIO("text")):
        with pytest.raises(TypeError, match="expected a path, bytes"):
            encode(source)  # type: ignore[arg-type]


def test_phases_share_one_time_out() -> None:
    """What connecting took is not there for waiting; connecting itself is never long."""
    now = 0.0
    left = TimeLeft(lambda: now, 8.0)
    assert {**left} == {"connect": 5.0, "read": 8.0, "write": 8.0, "pool": 8.0}
    now = 6.0
    assert {**left} == {"connect": 2.0, "read": 2.0, "write": 2.0, "pool": 2.0}
    now = 60.0
    assert 0 < left["read"] <= 0.001 and len(left) == 4


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (httpx.ConnectError("x"), "unsent"),
        (httpx.ConnectTimeout("x"), "unsent"),
        (httpx.PoolTimeout("x"), "unsent"),
        (httpx.ProxyError("x"), "unsent"),
        (httpx.ReadTimeout("x"), "slow"),
        (httpx.WriteTimeout("x"), "slow"),
        (httpx.ReadError(""), "broken"),
        (httpx.WriteError("x"), "broken"),
        (httpx.CloseError("x"), "broken"),
        (httpx.RemoteProtocolError("x"), "broken"),
        (httpx.DecodingError("x"), "broken"),
    ],
)
def test_what_is_lost_is_told_apart(error: httpx.HTTPError, how: str) -> None:
    """Only what cannot have reached the server counts as unsent."""
    assert loss_from(error).how == how

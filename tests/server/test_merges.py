"""``POST /merges`` on the application in process."""

import asyncio
import io
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from skimage.data import chelsea

from tests.server.test_app import PICTURE, Bench, kind, tell
from tocom_core.models import save_model


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model of 8 × 8 patches."""
    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 4, "depth": 3, "embed_dim": 48, "num_heads": 3}
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=3, **shape)
    path = tmp_path_factory.mktemp("merges") / "model.safetensors"
    save_model(path, vit, ("a", "b", "c"), model_args=shape)
    return str(path)


async def merges(bench: Bench, query: str = "", **how: Any) -> Any:
    """Ask what merges in a picture."""
    return await bench.client.post(f"/merges{query}", **({"files": [("file", PICTURE)]} | how))


def test_groups_and_their_place_in_the_picture(model_path: str) -> None:
    """Groups part the patches; sizes are theirs; the crop is the middle square of the picture."""

    async def story(bench: Bench) -> None:
        reply = (await merges(bench, "?r=8&layers=true")).json()
        assert (reply["r"], reply["grid"]) == (8, {"height": 8, "width": 8})
        assert (reply["tokens"], len(reply["sizes"]), sum(reply["sizes"])) == (40, 40, 64)
        assert [reply["groups"].count(n) for n in range(40)] == reply["sizes"]
        assert [layer["tokens"] for layer in reply["layers"]] == [56, 48, 40]
        assert reply["layers"][-1]["groups"] == reply["groups"]
        assert reply["picture"] == {"width": 40, "height": 30}
        crop = reply["crop"]
        assert crop["left"] + crop["width"] / 2 == pytest.approx(20, abs=0.6)
        assert crop["top"] + crop["height"] / 2 == pytest.approx(15, abs=0.6)
        assert crop["width"] == pytest.approx(crop["height"], rel=0.05)
        assert bench.engine.sizes == []

    tell(model_path, story)


def test_the_default_is_the_present_degree(model_path: str) -> None:
    """Without r it is the degree of the next batch; layers come only if asked for."""

    async def story(bench: Bench) -> None:
        await bench.client.put("/compression?r=5")
        reply = (await merges(bench)).json()
        assert (reply["r"], reply["layers"]) == (5, None)

    tell(model_path, story)


def test_a_drawing(model_path: str) -> None:
    """With format=png it is a picture, large enough to be looked at, with lines between groups."""

    async def story(bench: Bench) -> None:
        answer = await merges(bench, "?r=8&format=png")
        assert answer.headers["content-type"] == "image/png"
        drawing = Image.open(io.BytesIO(answer.content))
        assert drawing.size == (448, 448)
        assert (255, 255, 255) in {colour for _, colour in drawing.getcolors(1 << 20) or ()}

    tell(model_path, story)


@pytest.mark.parametrize(
    ("query", "how", "expected"),
    [
        ("?r=1000", {}, (422, "bad-parameter")),
        ("?r=few", {}, (422, "bad-parameter")),
        ("?format=svg", {}, (422, "bad-parameter")),
        ("?rr=1", {}, (422, "bad-parameter")),
        ("", {"files": [("file", PICTURE)] * 2}, (422, "bad-parameter")),
        ("", {"files": [("file", b"no image")]}, (400, "not-an-image")),
        ("", {"files": None, "json": {}}, (415, "unsupported-media-type")),
    ],
)
def test_what_is_refused(
    model_path: str, query: str, how: dict[str, Any], expected: tuple[int, str]
) -> None:
    """Errors are those of /classify; several images, or a degree that is none, are refused."""

    async def story(bench: Bench) -> None:
        assert kind(await merges(bench, query, **how)) == expected

    tell(model_path, story)


def test_whoever_is_served_goes_first(model_path: str) -> None:
    """While images wait the answer is 429 with a time to come back; then it works."""

    async def story(bench: Bench) -> None:
        bench.engine.go.clear()
        served = [asyncio.create_task(bench.post()) for _ in range(3)]
        await bench.held(3)
        refused = await merges(bench)
        assert kind(refused) == (429, "busy")
        assert int(refused.headers["retry-after"]) >= 1
        bench.engine.go.set()
        assert [(await answer).status_code for answer in served] == [200] * 3
        assert (await merges(bench)).status_code == 200

    tell(model_path, story, max_batch_size=1)


def test_not_while_warming_up_or_draining(model_path: str) -> None:
    """503 before the model is warm and once the server shuts down."""

    async def early(bench: Bench) -> None:
        assert kind(await merges(bench)) == (503, "not-ready")

    async def late(bench: Bench) -> None:
        await bench.service.drain()
        assert kind(await merges(bench)) == (503, "draining")

    tell(model_path, early, warm=False)
    tell(model_path, late)


def test_serving_goes_on_at_its_own_degree(model_path: str) -> None:
    """Looking at another degree changes neither the controller's degree nor the answers."""

    async def story(bench: Bench) -> None:
        before = (await bench.post()).json()["results"][0]
        assert (await merges(bench, "?r=8")).status_code == 200
        after = (await bench.post()).json()["results"][0]
        assert (after["r"], after["predictions"]) == (before["r"], before["predictions"])

    tell(model_path, story)


def test_large_pictures_keep_their_geometry(model_path: str) -> None:
    """The crop is told in the pixels of the picture as decoded, and both keep the proportions."""
    buffer = io.BytesIO()
    Image.fromarray(chelsea()).resize((1800, 1200)).save(buffer, "JPEG")

    async def story(bench: Bench) -> None:
        files = [("file", buffer.getvalue())]
        reply = (await merges(bench, "?r=8", files=files)).json()
        size, crop = reply["picture"], reply["crop"]
        assert size["width"] < 1800
        assert size["width"] / size["height"] == pytest.approx(1.5, rel=0.02)
        middle = crop["left"] + crop["width"] / 2
        assert middle / size["width"] == pytest.approx(0.5, abs=0.02)

    tell(model_path, story)

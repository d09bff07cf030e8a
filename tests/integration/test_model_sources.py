"""Models people have, served: a real photograph, and the library's own answer to it."""

import argparse
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from skimage.data import chelsea
from timm.data import create_transform, resolve_model_data_config
from timm.models import save_for_hf
from timm.utils import CheckpointSaver

from server.offline import main as classify
from tests.core import transformers_folders as folders
from tests.core import zoo
from tests.integration.conftest import start_server
from tocom_core.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PHOTO = Image.fromarray(chelsea())

Made = tuple[str, list[float]]
"""What to type, and the library's own scores of the photograph."""


@torch.inference_mode()
def scores(model: Any, pixels: torch.Tensor) -> list[float]:
    """Softmax of a library's logits."""
    logits = model(pixels)
    logits = logits if isinstance(logits, torch.Tensor) else logits.logits
    return logits.softmax(-1)[0].tolist()


def timm_scores(vit: Any) -> list[float]:
    """With timm's own transform."""
    config = resolve_model_data_config(vit)
    return scores(vit, create_transform(**config, is_training=False)(PHOTO).unsqueeze(0))


def timm_model() -> Any:
    """Small, random, 7 classes."""
    vit = timm.create_model("test_vit", num_classes=7)
    zoo.randomise(vit)
    return vit.eval()


def transformers_folder(place: Path, kind: str = "ViT", head: str = "") -> Made:
    """Saved by `transformers`, with its processor."""
    model = folders.build(kind, f"ForImageClassification{head}")
    prepare = folders.processor(kind)
    folders.save(place, model, prepare)
    return str(place), scores(model, prepare(images=PHOTO, return_tensors="pt")["pixel_values"])


def deit_folder(place: Path) -> Made:
    """Two heads, and a crop out of a larger square."""
    return transformers_folder(place, "DeiT", "WithTeacher")


def timm_run(place: Path) -> Made:
    """A checkpoint by the saver of timm's training script."""
    vit = timm_model()
    place.mkdir()
    arguments = argparse.Namespace(model="test_vit", num_classes=7)
    optimizer = torch.optim.SGD(vit.parameters(), 0.1)
    CheckpointSaver(vit, optimizer, args=arguments, checkpoint_dir=str(place)).save_checkpoint(
        0, metric=1.0
    )
    return str(place / "model_best.pth.tar"), timm_scores(vit)


def timm_hub_folder(place: Path) -> Made:
    """As timm pushes it to the hub."""
    vit = timm_model()
    save_for_hf(vit, place, model_config={"label_names": list(folders.NAMES)})
    return str(place), timm_scores(vit)


def research_checkpoint(place: Path) -> Made:
    """MAE's layout, known by its shapes alone, with ImageNet's preparation."""
    sizes = {"img_size": 64, "patch_size": 8, "embed_dim": 192, "depth": 12, "num_heads": 3}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=7, global_pool="avg", **sizes)
    zoo.randomise(vit)
    place.mkdir()
    torch.save({"model": vit.state_dict()}, place / "mine.pth")
    figures = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    transform = create_transform((3, 64, 64), interpolation="bicubic", crop_pct=0.875, **figures)
    return str(place / "mine.pth"), scores(vit.eval(), transform(PHOTO).unsqueeze(0))


SOURCES: dict[str, Callable[[Path], Made]] = {
    function.__name__: function
    for function in (
        *(transformers_folder, deit_folder, timm_run, timm_hub_folder, research_checkpoint),
    )
}


def by_index(predictions: list[dict[str, Any]]) -> list[float]:
    """Scores in the order of the classes."""
    return [p["score"] for p in sorted(predictions, key=lambda p: int(p["index"]))]


@pytest.mark.parametrize("source", SOURCES)
def test_each_source_classifies_a_photograph(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``tocom classify --model X`` gives the library's scores at r=0, and others at r=4."""
    model, expected = SOURCES[source](tmp_path / "model")
    photo = tmp_path / "cat.png"
    PHOTO.save(photo)
    found = {}
    for r in (0, 4):
        flags = [str(photo), "--model", model, "--r", str(r), "--top-k", "7", "--json"]
        capsys.readouterr()
        assert classify([*flags, "--device", "cpu"]) == 0
        [result] = json.loads(capsys.readouterr().out)
        found[r] = by_index(result["predictions"])
    # Resized by another kernel than some of the libraries', pixels are up to two levels apart.
    assert found[0] == pytest.approx(expected, abs=0.02)
    assert found[4] != pytest.approx(found[0], abs=1e-5)


def post(model: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Answers of a server with that model to the photograph, and what it says of the model."""
    server = start_server("--model", model, "--no-idle-profiling", "--backend=eager")
    try:
        server.wait_until_ready()
        buffer = io.BytesIO()
        PHOTO.save(buffer, "PNG")
        answers = {}
        with server.client() as client:
            for r in (0, 4):
                client.put(f"/compression?r={r}").raise_for_status()
                answer = client.post(
                    "/classify?top_k=7",
                    content=buffer.getvalue(),
                    headers={"Content-Type": "image/png"},
                )
                answer.raise_for_status()
                [answers[r]] = answer.json()["results"]
                assert answers[r]["r"] == r
            return answers[0]["predictions"], client.get("/model").json()
    finally:
        server.terminate()
        assert server.wait() == 0


def test_a_model_without_a_classifier_is_not_served(tmp_path: Path) -> None:
    """A backbone has nothing to answer; the error says what to do with it."""
    folders.save(tmp_path / "bare", folders.build(head="Model"))
    PHOTO.save(tmp_path / "cat.png")
    with pytest.raises(CheckpointError, match=r"bare has no classifier.*tocom finetune"):
        classify([str(tmp_path / "cat.png"), "--model", str(tmp_path / "bare")])


def test_a_server_of_a_transformers_folder(tmp_path: Path) -> None:
    """Labels, preparation and scores are the checkpoint's, over a real socket."""
    model, expected = transformers_folder(tmp_path / "flowers")
    predictions, about = post(model)
    assert by_index(predictions) == pytest.approx(expected, abs=0.02)
    assert {p["label"] for p in predictions} == set(folders.NAMES)
    assert about["name"] == "flowers"
    assert about["transform"]["crop_mode"] == "squash"


def test_a_server_of_a_hub_model_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the cache holds is served with HF_HUB_OFFLINE=1."""
    folder, expected = timm_hub_folder(tmp_path / "pushed")
    cached = tmp_path / "hub" / "models--me--pets"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(COMMIT)
    shutil.copytree(folder, cached / "snapshots" / COMMIT)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    predictions, about = post("hf-hub:me/pets")
    assert by_index(predictions) == pytest.approx(expected, abs=0.02)
    assert about["name"] == "pets"

"""The engine: what it computes, and what happens when computing fails."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from server.degrees import most_telling_first
from server.engine import Engine
from server.errors import ForwardFailed, SettingsError
from server.settings import Settings
from tocom_core.bank import Bank, backbone_digest
from tocom_core.bank_header import BankHeader
from tocom_core.models import LoadedModel, load_model, save_model

SHAPE = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 48, "num_heads": 3}
ARCH = "vit_tiny_patch16_224"
LABELS = ("cat", "dog", "ship", "sun", "tea")
K = 5


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ViT with 16 patches and 3 layers, with an evaluation table."""
    torch.manual_seed(1)
    vit = timm.create_model(ARCH, pretrained=False, num_classes=len(LABELS), **SHAPE)
    path = tmp_path_factory.mktemp("engine") / "model.safetensors"
    rows = [
        {"r": 0, "bank": False, "top1": 0.9},
        {"r": 3, "bank": False, "top1": 0.5},
        {"r": 3, "bank": True, "top1": 0.7},
    ]
    save_model(path, vit, LABELS, model_args=SHAPE, tocom={"evaluation": {"rows": rows}})
    return path


@pytest.fixture
def loaded(model_file: Path) -> LoadedModel:
    """The model, fresh for each test as the engine takes it over."""
    return load_model(model_file)


@pytest.fixture
def make_engine(loaded: LoadedModel) -> Iterator[Callable[..., Engine]]:
    """Build engines that are closed with the test."""
    engines: list[Engine] = []

    def make(bank: Bank | None = None, **settings: Any) -> Engine:
        engines.append(Engine(loaded, bank, Settings(**settings)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def make_bank(loaded: LoadedModel) -> Bank:
    """A bank with random, visible deltas."""
    bank = Bank(BankHeader(ARCH, 48, 3, K, 2, backbone_digest=backbone_digest(loaded.vit)))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return bank


def images(count: int) -> list[Tensor]:
    """Random uint8 images."""
    generator = torch.Generator().manual_seed(3)
    shape = (count, 3, 32, 32)
    return list(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))


def test_r0_equals_plain_timm(make_engine: Callable[..., Engine], loaded: LoadedModel) -> None:
    """Without compression the engine is the model: normalise, forward, softmax."""
    batch = torch.stack(images(3))
    with torch.inference_mode():
        expected = loaded.vit(loaded.normalize(batch)).softmax(-1).numpy()
    outcome = make_engine().run_blocking(images(3), 0)
    np.testing.assert_allclose(np.stack(outcome.outputs), expected, atol=1e-6)
    assert outcome.r == 0 and outcome.compute_s > 0


def test_outputs_are_probabilities_in_order(make_engine: Callable[..., Engine]) -> None:
    """One row per image, each summing to 1, independent of its neighbours."""
    engine = make_engine()
    together = np.stack(engine.run_blocking(images(4), 2).outputs)
    alone = np.stack([engine.run_blocking([image], 2).outputs[0] for image in images(4)])
    assert together.shape == (4, len(LABELS)) and together.dtype == np.float32
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_degrees_change_the_weights_and_come_back(
    make_engine: Callable[..., Engine], loaded: LoadedModel
) -> None:
    """A degree's result does not depend on the degrees before, whatever the walk."""
    engine = make_engine(make_bank(loaded))
    first = {r: engine.run_blocking(images(2), r).outputs for r in range(K + 1)}
    for r in (3, 0, 5, 5, 1, 0):
        again = engine.run_blocking(images(2), r)
        assert again.r == r
        np.testing.assert_array_equal(np.stack(again.outputs), np.stack(first[r]))


def test_the_bank_makes_a_difference(make_engine: Callable[..., Engine], model_file: Path) -> None:
    """With a bank the compressed result differs from plain merging; at r_source it does not."""
    plain = make_engine()
    settings = Settings()
    other = load_model(model_file)
    compensated = Engine(other, make_bank(other), settings)
    try:
        for r, same in ((0, True), (4, False)):
            a = np.stack(plain.run_blocking(images(2), r).outputs)
            b = np.stack(compensated.run_blocking(images(2), r).outputs)
            assert np.allclose(a, b, atol=1e-6) is same
    finally:
        compensated.close()


def test_failing_forward_fails_its_batch_only(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client learns nothing of the inside, and the next batch works."""
    engine = make_engine()
    with monkeypatch.context() as broken:
        broken.setattr(engine.model, "forward", _raising(RuntimeError("secret device state")))
        with pytest.raises(ForwardFailed) as caught:
            engine.run_blocking(images(1), 0)
    assert "secret" not in caught.value.detail and caught.value.status == 500
    assert len(engine.run_blocking(images(1), 0).outputs) == 1


def test_unhealthy_after_failures_in_a_row_until_a_success(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One failure is bad luck, three in a row are a broken engine; a success heals it."""
    engine = make_engine()
    with monkeypatch.context() as broken:
        broken.setattr(engine.model, "forward", _raising(RuntimeError("broken")))
        health = []
        for _ in range(3):
            with pytest.raises(ForwardFailed):
                engine.run_blocking(images(1), 0)
            health.append(engine.healthy)
    assert health == [True, True, False]
    engine.run_blocking(images(1), 0)
    assert engine.healthy


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_retried_in_halves(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A batch that does not fit is split until it does; results and order are the same."""
    engine = make_engine()
    expected = np.stack(engine.run_blocking(images(7), 1).outputs)
    forward, sizes = engine.model.forward, []

    def small_memory(pixels: Tensor, r: int) -> Tensor:
        sizes.append(len(pixels))
        if len(pixels) > 2:
            raise error
        return forward(pixels, r)

    monkeypatch.setattr(engine.model, "forward", small_memory)
    outcome = engine.run_blocking(images(7), 1)
    np.testing.assert_allclose(np.stack(outcome.outputs), expected, atol=1e-6)
    assert max(s for s in sizes if s <= 2) == 2 and 7 in sizes
    assert engine.healthy


def test_no_memory_for_one_image_fails(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When even one image does not fit, the batch fails and says why."""
    engine = make_engine()
    monkeypatch.setattr(engine.model, "forward", _raising(MemoryError()))
    with pytest.raises(ForwardFailed, match="memory"):
        engine.run_blocking(images(4), 0)


def test_scores_that_are_no_numbers_fail_their_image_only(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NaN row becomes that image's error; its neighbours are answered."""
    engine = make_engine()
    forward = engine.model.forward

    def poisoned(pixels: Tensor, r: int) -> Tensor:
        logits = forward(pixels, r).clone()
        logits[1, 0] = float("nan")
        return logits

    monkeypatch.setattr(engine.model, "forward", poisoned)
    good, bad, also_good = engine.run_blocking(images(3), 0).outputs
    assert isinstance(bad, ForwardFailed)
    assert good.sum() == pytest.approx(1) and also_good.sum() == pytest.approx(1)


def test_warm_up_measures_every_degree(
    make_engine: Callable[..., Engine], loaded: LoadedModel
) -> None:
    """After the warm-up each level has a measured throughput, relative to r=0."""
    engine = make_engine(make_bank(loaded), max_batch_size=2)
    warm_up = asyncio.run(engine.warm_up())
    levels = engine.levels(warm_up.images_per_s)
    assert [level.r for level in levels] == list(range(K + 1))
    assert all(level.measured and level.images_per_s for level in levels)
    assert levels[0].relative_throughput == 1.0


def test_warm_up_keeps_to_its_budget(make_engine: Callable[..., Engine]) -> None:
    """Without time only r=0 is run; the others are derived from it by arithmetic."""
    engine = make_engine()
    warm_up = asyncio.run(engine.warm_up(budget_s=0))
    assert set(warm_up.images_per_s) == {0}
    levels = engine.levels(warm_up.images_per_s)
    assert [level.measured for level in levels] == [True] + [False] * engine.max_r
    ratios = [level.relative_throughput for level in levels]
    assert ratios == sorted(ratios) and ratios[-1] > 1.2


def test_levels_carry_the_accuracy_of_how_they_are_served(
    make_engine: Callable[..., Engine], loaded: LoadedModel
) -> None:
    """Rows of the table with the bank count with a bank, those without count without."""
    plain = {level.r: level.expected_accuracy for level in make_engine().levels()}
    assert (plain[0], plain[3], plain[1]) == (0.9, 0.5, None)
    banked = {level.r: level.expected_accuracy for level in make_engine(make_bank(loaded)).levels()}
    assert (banked[0], banked[3]) == (None, 0.7)


def test_highest_degree(make_engine: Callable[..., Engine], loaded: LoadedModel) -> None:
    """K with a bank; without one what all layers can follow, or more if asked for."""
    assert make_engine(make_bank(loaded)).max_r == K
    assert make_engine().max_r == 5  # 3 layers of 5 leave 1 of 16 patches
    assert make_engine(max_r=8).max_r == 8
    with pytest.raises(SettingsError, match="max_r=6: the bank reaches r=5"):
        make_engine(make_bank(loaded), max_r=6)
    with pytest.raises(SettingsError, match="max_r=9: the model reaches r=8"):
        make_engine(max_r=9)


def test_wrong_number_of_labels_is_noticed_at_start(loaded: LoadedModel) -> None:
    """A model whose scores cannot be named does not start."""
    object.__setattr__(loaded, "labels", LABELS[:-1])
    engine = Engine(loaded, None, Settings())
    with pytest.raises(SettingsError, match="5 scores but has 4 labels"):
        asyncio.run(engine.warm_up())
    engine.close()


@pytest.mark.parametrize("highest", [0, 1, 2, 5, 16])
def test_each_degree_is_warmed_up_once(highest: int) -> None:
    """The order visits all degrees, the ends first."""
    order = list(most_telling_first(highest))
    assert sorted(order) == list(range(highest + 1))
    assert order[:2] == [0, highest][: len(order)]


def _raising(error: Exception) -> Callable[..., Tensor]:
    def forward(pixels: Tensor, r: int) -> Tensor:
        raise error

    return forward


@pytest.mark.parametrize(("setting", "expected"), [(None, False), (True, True), (False, False)])
def test_prop_attn_is_as_the_model_was_tuned(
    loaded: LoadedModel, caplog: pytest.LogCaptureFixture, setting: bool | None, expected: bool
) -> None:
    """The setting goes before the model's header, and that before the bank's."""
    tuned = replace(loaded, prop_attn=False)
    engine = Engine(tuned, make_bank(tuned), Settings(prop_attn=setting))
    engine.close()
    assert engine.model.prop_attn is expected
    assert ("its bank was trained with prop_attn=True" in caplog.text) == (setting is None)

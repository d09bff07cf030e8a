"""The engine: what it computes, and what happens when computing fails."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from server.engine import Engine
from server.errors import ForwardFailed, SettingsError
from server.lanes import use_threads
from server.settings import Settings
from server.stats import BatchOutcome
from tocom_core.bank import Bank, backbone_digest
from tocom_core.bank_header import BankHeader
from tocom_core.latency_profile import Measurement
from tocom_core.merger import WeightMerger
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


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """Take back what a test's settings said of this thread's number of threads."""
    before = torch.get_num_threads()
    yield
    use_threads(before)


@pytest.fixture
def loaded(model_file: Path) -> LoadedModel:
    """The model, fresh for each test as the engine takes it over."""
    return load_model(model_file)


@pytest.fixture
def make_engine(loaded: LoadedModel) -> Iterator[Callable[..., Engine]]:
    """Build engines that are closed with the test."""
    engines: list[Engine] = []

    def make(bank: Bank | None = None, **settings: Any) -> Engine:
        engines.append(Engine(loaded, bank, Settings(**({"backend": "eager"} | settings))))
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


class Ticks:
    """A clock that only moves when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


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
    engine = make_engine(lanes=1)
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
    engine = make_engine(lanes=1)
    forward = engine.model.forward

    def poisoned(pixels: Tensor, r: int) -> Tensor:
        logits = forward(pixels, r).clone()
        logits[1, 0] = float("nan")
        return logits

    monkeypatch.setattr(engine.model, "forward", poisoned)
    good, bad, also_good = engine.run_blocking(images(3), 0).outputs
    assert isinstance(bad, ForwardFailed)
    assert good.sum() == pytest.approx(1) and also_good.sum() == pytest.approx(1)


@pytest.mark.parametrize("r", [0, 3])
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_lanes_answer_as_one(
    make_engine: Callable[..., Engine], loaded: LoadedModel, r: int, count: int
) -> None:
    """Sharing a batch out changes nothing that a client could see."""
    whole = make_engine(lanes=1).run_blocking(images(count), r)
    shared = make_engine(lanes=4, threads=4).run_blocking(images(count), r)
    np.testing.assert_allclose(np.stack(shared.outputs), np.stack(whole.outputs), atol=1e-6)
    assert shared.r == whole.r == r


def test_weights_do_not_change_while_a_lane_is_running(
    make_engine: Callable[..., Engine], loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane that fails early does not let the next batch's weights in under the others."""
    engine = make_engine(make_bank(loaded), lanes=2, threads=2)
    weight = loaded.vit.blocks[0].attn.qkv.weight
    forward, failed, unchanged = engine.model.forward, threading.Event(), []

    def uneven(pixels: Tensor, r: int) -> Tensor:
        if len(pixels) == 2:
            failed.set()
            raise RuntimeError("broken")
        assert failed.wait(60)
        before = weight.clone()
        for _ in range(50):  # long enough for the next batch to come in between
            logits = forward(pixels, r)
        unchanged.append(torch.equal(weight, before))
        return logits

    monkeypatch.setattr(engine.model, "forward", uneven)

    async def two_batches() -> None:
        first = asyncio.create_task(engine.run(images(3), 0))
        await asyncio.to_thread(failed.wait, 60)
        second = engine.run(images(1), 5)
        failure, outcome = await asyncio.gather(first, second, return_exceptions=True)
        assert isinstance(failure, ForwardFailed) and isinstance(outcome, BatchOutcome)

    asyncio.run(two_batches())
    assert unchanged == [True, True]


def test_batches_of_one_degree_run_beside_each_other(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane that is done has room for the next batch, while the other one works on."""
    engine = make_engine(lanes=2, threads=2)
    forward, met = engine.model.forward, threading.Barrier(2, timeout=60)

    def uneven(pixels: Tensor, r: int) -> Tensor:
        if len(pixels) != 1:  # the part of two waits for the second batch, which comes after it
            met.wait()
        return forward(pixels, r)

    monkeypatch.setattr(engine.model, "forward", uneven)

    async def two_batches() -> None:
        first = asyncio.create_task(engine.run(images(3), 2))
        await asyncio.sleep(0)
        await engine.room()
        second = await engine.run(images(3), 2)
        assert len(second.outputs) == 3 and not second.partial
        assert len((await first).outputs) == 3

    asyncio.run(two_batches())


def test_a_single_image_beside_a_batch_is_a_part_of_the_machine(
    make_engine: Callable[..., Engine],
) -> None:
    """Alone it has all threads; beside others one lane, and its duration is said to be partial."""
    engine = make_engine(lanes=2, threads=2)

    async def run() -> tuple[bool, bool, bool]:
        alone = await engine.run(images(1), 0)
        batch, single = await asyncio.gather(engine.run(images(5), 0), engine.run(images(1), 0))
        return alone.partial, batch.partial, single.partial

    assert asyncio.run(run()) == (False, False, True)


def test_out_of_memory_in_a_lane_is_retried_in_halves(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What holds for a whole batch holds for shared-out ones."""
    engine = make_engine(lanes=2, threads=2)
    expected = np.stack(engine.run_blocking(images(7), 1).outputs)
    forward = engine.model.forward

    def small_memory(pixels: Tensor, r: int) -> Tensor:
        if len(pixels) > 2:
            raise MemoryError
        return forward(pixels, r)

    monkeypatch.setattr(engine.model, "forward", small_memory)
    outcome = engine.run_blocking(images(7), 1)
    np.testing.assert_allclose(np.stack(outcome.outputs), expected, atol=1e-6)


def test_closing_ends_all_threads(loaded: LoadedModel) -> None:
    """An engine that was used and closed leaves no thread behind."""
    before = set(threading.enumerate())
    engine = Engine(loaded, None, Settings(lanes=2, threads=2, backend="eager"))
    asyncio.run(engine.run(images(4), 0))
    engine.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()


def test_warm_up_measures_two_batches_that_are_far_apart(
    make_engine: Callable[..., Engine], loaded: LoadedModel
) -> None:
    """One image without compression and several at the highest degree: enough to begin with."""
    engine = make_engine(make_bank(loaded), max_batch_size=4)
    warm_up = asyncio.run(engine.warm_up())
    assert [(m.r, m.batch) for m in warm_up.measurements] == [(0, 1), (K, 4)]
    assert all(m.seconds > 0 and m.runs == 1 for m in warm_up.measurements)
    assert engine.own_profile(warm_up.measurements).degrees == tuple(range(K + 1))


def test_warm_up_takes_the_second_run(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run of a shape is slow for being the first, and is not what is believed."""
    ticks = Ticks()
    engine = Engine(loaded, None, Settings(max_batch_size=1, backend="eager"), ticks)
    forward, runs = engine.model.forward, list[int]()

    def slow_at_first(pixels: Tensor, r: int) -> Tensor:
        ticks.now += 1.0 if r in runs else 10.0
        runs.append(r)
        return forward(pixels, r)

    monkeypatch.setattr(engine.model, "forward", slow_at_first)
    warm_up = asyncio.run(engine.warm_up())
    engine.close()
    assert [m.seconds for m in warm_up.measurements] == [1.0, 1.0]


def test_nothing_is_measured_where_all_is_known(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stored latencies the warm-up only makes sure that the model runs, at both ends."""
    engine = make_engine()
    forward, runs = engine.model.forward, []

    def seen(pixels: Tensor, r: int) -> Tensor:
        runs.append((r, len(pixels)))
        return forward(pixels, r)

    monkeypatch.setattr(engine.model, "forward", seen)
    assert asyncio.run(engine.warm_up(measured=True)).measurements == ()
    assert runs == [(0, 1), (engine.max_r, 1)]


def test_a_model_with_one_degree_and_one_image_is_measured_once(loaded: LoadedModel) -> None:
    """Where both ends are the same batch it is one measurement, and a valid profile."""
    engine = Engine(loaded, None, Settings(max_batch_size=1))
    engine.max_r, engine.work = 0, {0: 1.0}
    warm_up = asyncio.run(engine.warm_up())
    engine.close()
    assert [(m.r, m.batch) for m in warm_up.measurements] == [(0, 1)]
    assert engine.own_profile(warm_up.measurements).degrees == (0,)


def test_measuring_runs_the_batch_that_was_asked_for(
    make_engine: Callable[..., Engine], loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Degree and size are those asked for; the images are made once and kept."""
    engine = make_engine(make_bank(loaded), lanes=1)
    forward, seen = engine.model.forward, []

    def note(pixels: Tensor, r: int) -> Tensor:
        seen.append((r, pixels))
        return forward(pixels, r)

    monkeypatch.setattr(engine.model, "forward", note)
    cells = [(3, 4), (0, 1), (5, 6)]
    seconds = [asyncio.run(engine.measure(*cell)) for cell in cells]
    assert [(r, len(pixels)) for r, pixels in seen] == cells
    assert min(seconds) > 0
    assert torch.equal(seen[0][1], seen[2][1][:4])


def test_measuring_does_not_count_merging(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A switch of degree is paid once, and says nothing of what the batch takes."""
    ticks = Ticks()
    engine = Engine(loaded, make_bank(loaded), Settings(lanes=1, backend="eager"), ticks)
    forward, merge = engine.model.forward, WeightMerger.set_target

    def compute(pixels: Tensor, r: int) -> Tensor:
        ticks.now += 2.0
        return forward(pixels, r)

    def switch(merger: WeightMerger, r: int) -> None:
        ticks.now += 40.0
        merge(merger, r)

    monkeypatch.setattr(engine.model, "forward", compute)
    monkeypatch.setattr(WeightMerger, "set_target", switch)
    assert engine.measure_blocking(4, 2) == 2.0 and ticks.now == 42.0
    engine.close()


def test_what_the_engine_knows_of_itself(
    make_engine: Callable[..., Engine], loaded: LoadedModel
) -> None:
    """Work falls with the degree; accuracies are those of the way it is served."""
    measured = [Measurement(0, 1, 0.1), Measurement(5, 2, 0.1)]
    plain = make_engine().own_profile(measured)
    assert plain.work[0] == 1.0 and sorted(plain.work.values(), reverse=True) == list(
        plain.work.values()
    )
    assert plain.expected_accuracy() == {0: 0.9, 3: 0.5}
    banked = make_engine(make_bank(loaded)).own_profile(measured)
    assert banked.expected_accuracy() == {3: 0.7}


def test_lanes_that_the_machine_cannot_run_are_refused(loaded: LoadedModel) -> None:
    """An engine with more lanes than threads does not start."""
    with pytest.raises(SettingsError, match="lanes=3"):
        Engine(loaded, None, Settings(threads=2, lanes=3))


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


@pytest.mark.parametrize(("megabytes", "kept"), [(0, False), (1, True)])
def test_the_cache_of_switches_has_the_size_that_it_was_given(
    make_engine: Callable[..., Engine],
    loaded: LoadedModel,
    megabytes: int,
    kept: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With `switch_cache_mb` the second visit of a degree builds nothing; 0 turns that off."""
    engine = make_engine(make_bank(loaded), lanes=1, switch_cache_mb=megabytes)
    builds = []
    delta = Bank.delta

    def counted(self: Bank, *given: Any) -> Any:
        builds.append(given)
        return delta(self, *given)

    monkeypatch.setattr(Bank, "delta", counted)
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    for r in (1, 0, 1, 0, 1):
        engine.run_blocking([image], r)
    assert len(builds) == (1 if kept else 3)


def test_attention_goes_the_way_that_the_settings_name(
    make_engine: Callable[..., Engine],
) -> None:
    """`attention` reaches the model."""
    assert make_engine(attention="products").model.attention == "products"
    assert make_engine().model.attention == "auto"

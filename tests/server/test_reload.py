"""Another model while requests are in flight: in process, with engines that can be held."""

import asyncio
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import timm
import torch

from server import reload
from server.capacity_demand import WINDOW_S
from server.errors import ReloadFailed
from server.reload_schemas import ReloadRequest
from tests.core.fake_bank_hub import FakeBankHub, ask_hub
from tests.server.test_app import Bench, HeldEngine, kind, tell
from tocom_core.bank import Bank
from tocom_core.bank_header import BankHeader
from tocom_core.bank_places import locate_bank
from tocom_core.models import save_model

SHAPE = {"patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}


def save(path: Path, labels: tuple[str, ...], size: int = 32, *, negated: bool = False) -> None:
    """A tiny random model, always the same one; negated, it likes best what it liked least."""
    torch.manual_seed(0)
    shape = SHAPE | {"img_size": size}
    vit = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, num_classes=len(labels), **shape
    )
    if negated:
        with torch.no_grad():
            vit.head.weight.neg_()
            vit.head.bias.neg_()
    path.parent.mkdir(exist_ok=True)
    save_model(path, vit, labels, model_args=shape)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reload may name: `same`, `other` (classes and input size), `negated`, `broken`."""
    folder = tmp_path_factory.mktemp("models")
    save(folder / "first.safetensors", ("a", "b", "c"))
    save(folder / "same/model.safetensors", ("a", "b", "c"))
    save(folder / "other.safetensors", ("x", "y", "z", "w"), size=48)
    save(folder / "negated.safetensors", ("a", "b", "c"), negated=True)
    (folder / "two.txt").write_text("a\nb\n")
    (folder / "broken.safetensors").write_bytes(b"no model" * 100)
    return folder


@pytest.fixture(autouse=True)
def held_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of reloads can be held and broken as well."""
    monkeypatch.setattr(reload, "Engine", HeldEngine)


def tell_story(models: Path, story: Any, **settings: Any) -> None:
    """Run a story on a server of the first model."""
    path = str(models / "first.safetensors")
    tell(path, story, models_dir=models, live_share=0, backend="eager", **settings)


async def ask(bench: Bench, wait_s: float = 30, **wish: Any) -> httpx.Response:
    """Ask for a reload and wait for its end."""
    return await bench.client.post("/models/reload", json=wish | {"wait_s": wait_s})


async def retired(bench: Bench) -> None:
    """Wait until the model before is gone."""
    task = bench.service.reloads._task
    assert task is not None
    await task


def test_a_reload_swaps_the_model(models: Path) -> None:
    """New labels, new input size, new name; the metrics and GET /model say so."""

    async def story(bench: Bench) -> None:
        assert (await bench.client.get("/model")).json()["reload"] is None
        assert (await bench.post()).json()["model"] == "first"
        answer = await ask(bench, model="other")
        assert answer.status_code == 200, answer.text
        told = answer.json()
        assert (told["state"], told["model"]) == ("done", "other.safetensors")
        assert (told["images"], told["recent"], told["agreement"]) == (32, 1, None)
        result = (await bench.post()).json()
        assert result["model"] == "other"
        labels = {p["label"] for p in result["results"][0]["predictions"]}
        assert labels == {"x", "y", "z", "w"}
        model = (await bench.client.get("/model")).json()
        assert model["input_size"] == [3, 48, 48] and model["reload"]["state"] == "done"
        page = (await bench.client.get("/metrics")).text
        assert 'tocom_reloads_total{outcome="done"} 1.0' in page
        assert page.count("tocom_model_info{") == 1 and 'name="other"' in page

    tell_story(models, story)


def test_the_load_is_not_forgotten(models: Path) -> None:
    """What was offered to the old model counts against the capacity of the new one."""

    async def story(bench: Bench) -> None:
        for _ in range(3):
            assert (await bench.post()).status_code == 200
        assert (await ask(bench, model="other")).status_code == 200
        told = (await bench.client.get("/compression")).json()
        level = next(one for one in told["levels"] if one["r"] == told["steady_r"])
        images = told["capacity_demand"] * level["images_per_s"] * WINDOW_S
        assert images == pytest.approx(3, abs=0.01)

    tell_story(models, story)


def test_what_is_in_flight_is_answered_by_the_model_it_was_decoded_for(models: Path) -> None:
    """In a batch, in the queue, or with its body on the way: nobody is lost, or gets mixed labels.

    The new model waits for the last batch of the old one.
    """

    async def story(bench: Bench) -> None:
        old = bench.engine
        old.go.clear()
        before = [asyncio.create_task(bench.post()) for _ in range(5)]
        await bench.held(5)
        assert (await ask(bench, model="other")).status_code == 200
        new = bench.service.engine
        assert isinstance(new, HeldEngine) and new is not old
        new.sizes.clear()  # the trial's
        after = [asyncio.create_task(bench.post()) for _ in range(3)]
        await bench.held(3)
        await asyncio.sleep(0.05)
        assert new.sizes == [] and not any(task.done() for task in before + after)
        old.go.set()
        for task, name in [(t, "first") for t in before] + [(t, "other") for t in after]:
            answer = await task
            assert answer.status_code == 200 and answer.json()["model"] == name
        await retired(bench)
        assert sum(old.sizes) == 5 and sum(new.sizes) == 3

    tell_story(models, story, max_batch_size=2)


def test_a_hanging_old_model_does_not_hold_the_new_one_for_good(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while both run side by side."""
    monkeypatch.setattr(reload, "SIDE_BY_SIDE_AFTER_S", 0.05)

    async def story(bench: Bench) -> None:
        bench.engine.go.clear()
        stuck = asyncio.create_task(bench.post())
        await bench.held(1)
        await ask(bench, model="other")
        assert (await bench.post()).json()["model"] == "other"
        assert not stuck.done()
        bench.engine.go.set()
        assert (await stuck).json()["model"] == "first"

    tell_story(models, story, slo_ms=50, shed_late=False)


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        ({"model": "broken"}, "broken.safetensors is not a readable safetensors file"),
        ({"model": "negated"}, "agrees with the present one on 0%"),
        ({"model": "same", "bank": "same"}, "bank"),
        ({"labels": "two"}, "labels"),
    ],
)
def test_what_fails_changes_nothing(models: Path, wish: dict[str, Any], why: str) -> None:
    """The problem says why, without a path; the old model serves on, and a good reload works."""

    async def story(bench: Bench) -> None:
        assert (await bench.post()).status_code == 200
        core = bench.service.core
        answer = await ask(bench, **wish)
        assert kind(answer) in [(422, "reload-failed"), (422, "bad-parameter")]
        assert why in answer.json()["detail"] and str(models) not in answer.text
        assert bench.service.core is core and bench.service.engine is bench.engine
        assert (await bench.post()).json()["model"] == "first"
        assert (await ask(bench, model="same")).status_code == 200

    tell_story(models, story)


def test_a_disagreement_can_be_meant(models: Path) -> None:
    """min_agreement=0 takes a model that differs in every image; the count says how it ended."""

    async def story(bench: Bench) -> None:
        assert kind(await ask(bench, model="negated")) == (422, "reload-failed")
        assert (await ask(bench, model="negated", min_agreement=0)).json()["agreement"] == 0
        page = (await bench.client.get("/metrics")).text
        assert 'tocom_reloads_total{outcome="disagreed"} 1.0' in page
        assert 'tocom_reloads_total{outcome="done"} 1.0' in page

    tell_story(models, story)


def test_a_new_model_that_does_not_run_is_refused(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its forward fails in the warm-up; nobody but the operator notices."""

    class Broken(HeldEngine):
        def _warm_up(self, *arguments: Any) -> Any:
            raise RuntimeError("no such kernel")

    monkeypatch.setattr(reload, "Engine", Broken)

    async def story(bench: Bench) -> None:
        answer = await ask(bench, model="same")
        assert kind(answer) == (422, "reload-failed") and "no such kernel" in answer.text
        assert (await bench.post()).status_code == 200
        assert (await bench.client.get("/readyz")).status_code == 200

    tell_story(models, story)


def test_one_reload_at_a_time(models: Path) -> None:
    """202 for the first, which GET /model follows; 409 for the second."""

    async def story(bench: Bench) -> None:
        bench.engine.go.clear()  # the trial waits for the present model
        first = await ask(bench, wait_s=0, model="same")
        assert (first.status_code, first.json()["state"]) == (202, "loading")
        assert kind(await ask(bench, wait_s=0, model="other")) == (409, "reload-in-progress")
        while (state := (await bench.client.get("/model")).json()["reload"]["state"]) != "trying":
            assert state in ("loading", "warming_up")
            await asyncio.sleep(0.01)
        assert (await bench.client.get("/model")).json()["name"] == "first"
        bench.engine.go.set()
        assert (await bench.service.reloads.wait(30)).state == "done"

    tell_story(models, story)


def test_a_reload_without_a_body_reads_again(models: Path, tmp_path: Path) -> None:
    """The same names, new files: as SIGHUP does."""
    path = tmp_path / "model.safetensors"
    save(path, ("a", "b", "c"))

    async def story(bench: Bench) -> None:
        digest = (await bench.client.get("/model")).json()["digest"]
        save(path, ("p", "q", "r"), size=48)
        assert (await bench.client.post("/models/reload")).status_code == 202
        await bench.service.reloads.wait(30)
        model = (await bench.client.get("/model")).json()
        assert model["labels"] == ["p", "q", "r"] and model["digest"] != digest

    tell(str(path), story, backend="eager")


def test_a_reload_fetches_no_bank_from_a_hub(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is configured is read from the local cache, or not at all."""
    Bank(BankHeader("", SHAPE["embed_dim"], SHAPE["depth"], 4, 1)).save(tmp_path / "b.safetensors")
    content = {"bank.safetensors": (tmp_path / "b.safetensors").read_bytes()}
    with FakeBankHub({"me/bank": content}).running() as hub:
        ask_hub(monkeypatch, hub.url, tmp_path / "cache")

        async def story(bench: Bench) -> None:
            answer = await ask(bench)
            assert answer.status_code == 422, answer.text
            assert "may not fetch" in answer.json()["detail"] and str(tmp_path) not in answer.text
            assert not [asked for asked in hub.asked if "me/bank" in asked]
            locate_bank("hf-hub:me/bank")
            asked = len(hub.asked)
            answer = await ask(bench)
            assert answer.status_code == 200, answer.text
            assert (await bench.client.get("/model")).json()["bank"]["num_groups"] == 4
            assert answer.json()["bank"] == "hf-hub:me/bank" and len(hub.asked) == asked

        tell_story(models, story, bank="hf-hub:me/bank")


def test_not_before_the_first_model_is_warm_and_not_in_a_drain(models: Path) -> None:
    """503, as for anything else."""

    async def story(bench: Bench) -> None:
        assert kind(await ask(bench, model="same")) == (503, "not-ready")
        await bench.app.state.starting
        await bench.service.drain()
        assert kind(await ask(bench, model="same")) == (503, "draining")

    path = str(models / "first.safetensors")
    tell(path, story, warm=False, models_dir=models)


def test_a_drain_gives_a_reload_up_and_finishes_an_old_model(models: Path) -> None:
    """Before the swap the reload is dropped; after it both models finish what they have."""

    async def before(bench: Bench) -> None:
        bench.engine.go.clear()
        await ask(bench, wait_s=0, model="same")
        draining = asyncio.create_task(bench.service.drain())
        await asyncio.sleep(0.05)
        bench.engine.go.set()
        assert await draining is True
        with pytest.raises(ReloadFailed, match="shut down"):
            await bench.service.reloads.wait(10)
        assert bench.service.engine is bench.engine

    async def after(bench: Bench) -> None:
        bench.engine.go.clear()
        first = asyncio.create_task(bench.post())
        await bench.held(1)
        await ask(bench, model="other")
        second = asyncio.create_task(bench.post())
        await bench.held(1)
        draining = asyncio.create_task(bench.service.drain())
        await asyncio.sleep(0.05)
        assert not first.done() and not draining.done()
        bench.engine.go.set()
        assert await draining is True
        assert [(await task).json()["model"] for task in (first, second)] == ["first", "other"]

    tell_story(models, before)
    tell_story(models, after)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Nothing is freed but what nobody refers to any more."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_the_old_models_memory_is_freed(models: Path) -> None:
    """Without the collector, which does not look at what was frozen after the start."""

    async def story(bench: Bench) -> None:
        await bench.client.put("/compression?r=1")  # weights of a degree are kept as well
        assert (await bench.post()).status_code == 200
        weights = [weakref.ref(p) for p in bench.engine.model.parameters()]
        assert (await ask(bench, model="same")).status_code == 200
        await retired(bench)
        for _ in range(500):  # a thread that is about to end may hold its last batch still
            if not any(ref() is not None for ref in weights):
                break
            await asyncio.sleep(0.01)
        assert [ref() for ref in weights if ref() is not None] == []

    tell_story(models, story)


def test_a_pin_holds_across_a_reload(models: Path) -> None:
    """It is the operator's word."""

    async def story(bench: Bench) -> None:
        await bench.client.put("/compression?r=2")
        await ask(bench, model="same")
        status = (await bench.client.get("/compression")).json()
        assert (status["mode"], status["r"]) == ("pinned", 2)
        assert (await bench.post()).json()["results"][0]["r"] == 2

    tell_story(models, story)


def test_every_request_is_answered_through_many_reloads(models: Path) -> None:
    """Each once, by one of the models, with that model's labels."""
    labels = {"first": set("abc"), "same": set("abc"), "other": set("xyzw")}

    async def story(bench: Bench) -> None:
        stop = asyncio.Event()
        answers: list[httpx.Response] = []

        async def client(count: int) -> None:
            while not stop.is_set():
                answers.append(await bench.post(count=count))

        clients = [asyncio.create_task(client(count)) for count in (1, 1, 1, 2, 3)]
        for name in ("other", "same", "other", "same"):
            assert (await ask(bench, model=name)).status_code == 200
        stop.set()
        await asyncio.gather(*clients)
        await retired(bench)
        assert {answer.status_code for answer in answers} == {200}
        seen = set()
        for answer in answers:
            body = answer.json()
            seen.add(body["model"])
            for result in body["results"]:
                assert {p["label"] for p in result["predictions"]} <= labels[body["model"]]
        assert seen == set(labels)
        page = (await bench.client.get("/metrics")).text
        assert f'tocom_requests_total{{outcome="ok"}} {len(answers)}.0' in page
        assert bench.service.in_flight == 0

    tell_story(models, story)


def test_start_returns_what_it_does(models: Path) -> None:
    """The status names what is loaded, as a request would name it."""

    async def story(bench: Bench) -> None:
        status = bench.service.reloads.start(ReloadRequest(model="same"))
        assert (status.state, status.model) == ("loading", "same/model.safetensors")
        await bench.service.reloads.wait(30)

    tell_story(models, story)

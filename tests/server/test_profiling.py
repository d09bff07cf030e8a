"""`tocom profile`: from a command line to a file that a server believes."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

from server.accuracy_sources import calibration_images, measure_agreement, read_evaluation
from server.engine import Engine, load_engine
from server.errors import ForwardFailed, SettingsError
from server.lanes import use_threads
from server.profile_options import ProfileOptions, parse_arguments
from server.profile_report import as_markdown, plot_profile
from server.profile_run import ProfileRun
from server.profiling import main
from server.settings import Settings
from server.stored_profile import open_profile
from tests.server.fakes import ManualClock
from tocom_core.errors import DataError
from tocom_core.latency_profile import LatencyProfile
from tocom_core.models import save_model

ARCH = "vit_tiny_patch16_224"
SHAPE = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
LABELS = ("cat", "dog", "ship")
QUICK = ("--batch-sizes", "1", "2", "--degrees", "0", "2", "--max-batch-size", "4")


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """Take back what a test's settings said of this thread's number of threads."""
    before = torch.get_num_threads()
    yield
    use_threads(before)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ViT without an evaluation table."""
    torch.manual_seed(1)
    vit = timm.create_model(ARCH, pretrained=False, num_classes=len(LABELS), **SHAPE)
    path = tmp_path_factory.mktemp("profiling") / "model.safetensors"
    save_model(path, vit, LABELS, model_args=SHAPE)
    return path


@pytest.fixture
def engine(model_file: Path) -> Iterator[Engine]:
    """The model, ready to be measured."""
    made = load_engine(Settings(model=str(model_file), max_batch_size=4))
    yield made
    made.close()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of twelve coloured images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        colour = (20 * number, 255 - 20 * number, 7 * number)
        Image.new("RGB", (40, 40), colour).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture
def make_run(engine: Engine, tmp_path: Path) -> Callable[..., ProfileRun]:
    """Build runs that write `profile.json` in a folder of their own."""

    def make(**options: Any) -> ProfileRun:
        chosen: dict[str, Any] = {"degrees": (0, 2), "batch_sizes": (1, 2), "repeats": 2} | options
        output = tmp_path / "profile.json"
        return ProfileRun(engine, 4, ProfileOptions(output=output, **chosen), ManualClock())

    return make


def evaluation_of(engine: Engine, **changes: Any) -> dict[str, Any]:
    """What `tocom evaluate` writes, as far as it is read here."""
    identity = engine.model_identity
    rows = [
        {"r_source": 0, "r": r, "bank": bank, "scaling": 0.1 if bank else None, "top1": top1}
        for r, bank, top1 in [(0, False, 0.9), (2, False, 0.8), (2, True, 0.85), (99, False, 0.1)]
    ]
    rows.append({"r_source": 2, "r": 0, "bank": False, "scaling": None, "top1": 0.3})
    table = {name: identity[name] for name in ("digest", "method", "prop_attn", "r_source")}
    return {**table, "bank": {"digest": "b" * 64}, "images": 50, "rows": rows, **changes}


def test_a_server_starts_from_what_the_command_writes(
    model_file: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line to the latencies and accuracies that a server with it believes."""
    path = tmp_path / "profile.json"
    flags = ["--model", str(model_file), "--output", str(path), "--calibration", str(photos)]
    assert main([*flags, *QUICK, "--repeats", "2"]) == 0
    settings = Settings(model=str(model_file), profile=str(path), max_batch_size=4)
    served = load_engine(settings)
    served.close()
    stored = open_profile(settings, served)
    assert [(m.r, m.batch, m.runs) for m in stored.measurements] == [
        (r, size, 2) for r in (0, 2) for size in (1, 2)
    ]
    assert [(a.r, a.source, a.images) for a in stored.accuracies] == [
        (r, "agreement", 12) for r in served.work
    ]
    table = capsys.readouterr().out
    assert "| r | accuracy measured | expected | ms at 1 | ms at 2 |" in table
    assert "| 0 | 100.0% |" in table


def test_an_existing_file_is_continued(
    make_run: Callable[..., ProfileRun], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured counts; only what is missing is run."""
    first = make_run().run()
    ran: list[tuple[int, int]] = []

    def note(r: int, batch: int) -> float:
        ran.append((r, batch))
        return 0.5

    monkeypatch.setattr(engine, "measure_blocking", note)
    again = make_run().run()
    assert ran == [] and again == first
    more = make_run(batch_sizes=(1, 4)).run()
    assert set(ran) == {(0, 4), (2, 4)}
    assert [(m.r, m.batch) for m in more.measurements] == [
        (r, size) for r in (0, 2) for size in (1, 2, 4)
    ]
    ran.clear()
    make_run(overwrite=True).run()
    assert set(ran) == {(r, size) for r in (0, 2) for size in (1, 2)}


def test_an_interrupted_run_keeps_its_finished_rounds(
    make_run: Callable[..., ProfileRun],
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Ctrl-C in the second round leaves the first one's figures in the file."""
    runs = iter(range(100))

    def interrupted(r: int, batch: int) -> float:
        if next(runs) == 9:  # four cells with their cold runs are a round
            raise KeyboardInterrupt
        return 0.5

    monkeypatch.setattr(engine, "measure_blocking", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_run().run()
    kept = LatencyProfile.load(tmp_path / "profile.json")
    assert [m.runs for m in kept.measurements] == [1] * 4


def test_no_round_begins_after_the_time_is_up(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round that has begun is finished, and the profile is written."""
    clock = ManualClock()

    def slow(r: int, batch: int) -> float:
        clock.now += 1.0
        return 0.5

    monkeypatch.setattr(engine, "measure_blocking", slow)
    options = ProfileOptions(output=tmp_path / "p.json", degrees=(0, 2), seconds=10.0)
    profile = ProfileRun(engine, 1, options, clock).run()
    assert {m.runs for m in profile.measurements} == {4}  # 4 s with the cold runs, then 2 s each


def test_a_file_of_something_else_is_not_continued(
    make_run: Callable[..., ProfileRun],
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Another model, another device, larger batches: each is refused with what differs."""
    make_run(batch_sizes=(1, 4)).run()
    with pytest.raises(SettingsError, match=r"batches of 4: give --max-batch-size 4, or name"):
        ProfileRun(engine, 2, ProfileOptions(output=tmp_path / "profile.json"))
    with monkeypatch.context() as changed:
        changed.setattr(engine, "device_identity", {**engine.device_identity, "threads": 77})
        with pytest.raises(SettingsError, match=r"another device: threads .* 77 here; .*overwrite"):
            make_run()
    monkeypatch.setattr(engine, "model_identity", {**engine.model_identity, "r_source": 7})
    with pytest.raises(SettingsError, match="another model: r_source 0 there, 7 here"):
        make_run()
    make_run(overwrite=True)


def test_what_the_model_does_not_have_is_refused(make_run: Callable[..., ProfileRun]) -> None:
    """Degrees and batch sizes beyond the served ones, before anything is measured."""
    with pytest.raises(SettingsError, match="--degrees 99: this model has degrees 0 to"):
        make_run(degrees=(0, 99))
    with pytest.raises(SettingsError, match="--batch-sizes 8: --max-batch-size is 4"):
        make_run(batch_sizes=(1, 8))


def test_evaluation_is_expected_and_agreement_is_kept_beside_it(
    make_run: Callable[..., ProfileRun], engine: Engine, tmp_path: Path, photos: Path
) -> None:
    """Both are written; a later call without them keeps them."""
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation_of(engine)))
    options = {"evaluation": tmp_path, "calibration": str(photos), "calibration_count": 3}
    written = make_run(**options).run()
    assert written.expected_accuracy() == {0: 0.9, 2: 0.8}
    assert {a.images for a in written.accuracies if a.source == "agreement"} == {3}
    assert set(make_run().run().accuracies) == set(written.accuracies)


def test_evaluation_of_the_way_it_is_served(engine: Engine, tmp_path: Path) -> None:
    """Without a bank the plain rows count, at the model's own r_source, of degrees it has."""
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(evaluation_of(engine)))
    found = read_evaluation(path, engine)
    assert [(a.r, a.value, a.source, a.images) for a in found] == [
        (0, 0.9, "evaluation", 50),
        (2, 0.8, "evaluation", 50),
    ]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"digest": "c" * 64}, "another model: digest"),
        ({"method": "prune"}, "another model: method prune there, merge here"),
        ({"rows": []}, "no row has r_source=0 and bank=False"),
        ({"rows": [{"r": 0}]}, "not what 'tocom evaluate --output' writes .*KeyError"),
        (
            {"rows": [{"r_source": 0, "r": 0, "bank": False, "scaling": None}]},
            "for labelled images .*top1",
        ),
    ],
)
def test_evaluation_of_something_else_is_refused(
    engine: Engine, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    """Figures that are not this model's must not be believed; the message says why."""
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(evaluation_of(engine, **changes)))
    with pytest.raises(SettingsError, match=told):
        read_evaluation(path, engine)


def test_agreement_counts_the_same_first_class(
    engine: Engine, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked with a model that is known to differ at one degree; no answer is no agreement."""
    images = calibration_images(str(photos), 8, engine.loaded)
    run = engine.run_blocking

    def changed(part: Any, r: int) -> Any:
        outcome = run(part, 0)
        if r == 2 and len(part) == 3:
            least_likely_first, unknown = -outcome.outputs[0], ForwardFailed("no finite scores")
            return replace(outcome, outputs=[least_likely_first, unknown, outcome.outputs[2]])
        return outcome

    monkeypatch.setattr(engine, "run_blocking", changed)
    found = {a.r: a for a in measure_agreement(engine, images, (0, 1, 2), batch=3)}
    assert (found[0].value, found[1].value) == (1.0, 1.0)
    assert found[2].value == 4 / 8  # batches of 3, 3 and 2
    assert {a.images for a in found.values()} == {8}


def test_calibration_images_are_spread_and_unreadable_ones_left_out(
    engine: Engine, photos: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A sorted data set is not represented by its first class alone."""
    (photos / "03.png").write_bytes(b"no image")
    images = calibration_images(str(photos), 4, engine.loaded)  # of 12: 0, 3, 6 and 9
    assert [int(image[0, 0, 0]) for image in images] == [0, 120, 180]
    assert "03.png left out" in caplog.text
    assert len(calibration_images(str(photos), 500, engine.loaded)) == 11
    for path in photos.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="no readable image"):
        calibration_images(str(photos), 4, engine.loaded)


def test_own_flags_and_the_servers() -> None:
    """Own options are taken out, all else is a setting, and no name means both."""
    threads = ["--threads", "3"]
    options, settings = parse_arguments(
        ["--model", "m.pth", "--batch-sizes", "1", "4", "--lanes=2", "--repeats", "7", *threads]
    )
    assert (options.batch_sizes, options.repeats, options.output.name) == (
        (1, 4),
        7,
        "profile.json",
    )
    assert (settings.model, settings.lanes, settings.threads) == ("m.pth", 2, 3)
    assert not set(vars(ProfileOptions())) & set(Settings.model_fields)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--lane", "2"], "unknown flag --lane; did you mean --lanes"),
        (["--repeats", "0"], "0 must be 1 or more; 'tocom profile --help'"),
        (["--seconds", "-1"], "above 0"),
        (["--max-batch-size", "0"], "--max-batch-size='0'"),
        (["--output", "/nowhere/at/all/profile.json"], "there is no folder /nowhere/at/all"),
    ],
)
def test_wrong_usage_is_told_at_once(argv: list[str], told: str) -> None:
    """Before the model is loaded, in words that say how to mend it."""
    with pytest.raises(SettingsError, match=told):
        parse_arguments(argv)


def test_the_table_shows_what_was_measured(make_run: Callable[..., ProfileRun]) -> None:
    """A row per degree of the model; cells that were not measured stay empty."""
    profile = make_run().run()
    text = as_markdown(profile, 0.1)
    rows = {int(line.split("|")[1]): line.split("|") for line in text.splitlines()[4:]}
    assert list(rows) == list(profile.degrees)
    measured = next(m for m in profile.measurements if (m.r, m.batch) == (2, 2))
    assert rows[2][5].strip() == f"{1000 * measured.seconds:.1f}"
    assert rows[1][5].strip() == "" and rows[0][-2].strip() == "yes"


def test_the_plot_is_drawn_with_and_without_accuracy(
    make_run: Callable[..., ProfileRun], photos: Path, tmp_path: Path
) -> None:
    """Accuracy is a second panel: the picture with it is wider."""
    pytest.importorskip("matplotlib")
    plain, known = tmp_path / "plain.png", tmp_path / "known.png"
    plot_profile(plain, make_run().run(), 0.1, "model")
    plot_profile(known, make_run(calibration=str(photos)).run(), 0.1, "model")
    with Image.open(plain) as narrow, Image.open(known) as wide:
        assert wide.width > 1.5 * narrow.width and wide.height == narrow.height


def test_trace_writes_where_the_time_goes(
    model_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A table on stdout and in files, a trace per cell, and no profile; both backends on a CPU."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "new" / "stages"
    flags = ["--model", str(model_file), "--trace", str(folder), "--repeats", "1"]
    assert main([*flags, *QUICK]) == 0
    record = json.loads((folder / "stages.json").read_text())
    cells = [(cell["backend"], cell["r"], cell["batch"]) for cell in record["cells"]]
    assert cells == [
        (backend, r, size) for backend in ("eager", "onnx") for size in (1, 2) for r in (0, 2)
    ]
    for backend, r, size in cells:
        assert (folder / f"trace-{backend}-r{r}-batch{size}.json").is_file()
    assert (folder / "stages.png").is_file()
    assert not (tmp_path / "profile.json").exists()
    output = capsys.readouterr().out
    assert (folder / "stages.md").read_text().strip() in output


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--degrees", "99"), "--degrees 99: this model has degrees 0 to"),
        (("--batch-sizes", "9", "--max-batch-size", "4"), "--batch-sizes 9: --max-batch-size is 4"),
    ],
)
def test_trace_refuses_cells_that_cannot_be(
    wrong: tuple[str, ...], message: str, model_file: Path, tmp_path: Path
) -> None:
    """Before anything is run or written."""
    folder = tmp_path / "stages"
    with pytest.raises(SettingsError, match=message):
        main(["--model", str(model_file), "--trace", str(folder), *wrong])
    assert not folder.exists()

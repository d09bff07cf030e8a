"""Accuracy per degree, and the table that goes into the model file."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.core import zoo
from tests.core.digit_model import LABELS, K, write_digit_model
from tests.core.pictures import digit_label, encoded, write_folder, write_parquet
from tocom_core import Bank, CompressedViT, load_model
from tocom_core.accuracy_report import stored_table
from tocom_core.bank_header import BankHeader
from tocom_core.errors import BankError, CheckpointError, DataError
from tocom_core.evaluation import EvaluateOptions, evaluate, main
from tocom_core.models import save_model, store_evaluation


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty digits."""
    return write_folder(tmp_path_factory.mktemp("digits"), 40)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model file with a bank beside it."""
    return write_digit_model(tmp_path / "weights")


def chosen(model: Path, data: Path, **changes) -> EvaluateOptions:
    """Options for a quick evaluation, without timing."""
    settings = {"r_target": (0, 4), "device": "cpu", "throughput_seconds": 0.0, **changes}
    return EvaluateOptions(model=str(model), data=str(data), **settings)


def test_table_compares_plain_merging_and_the_bank(model: Path, digits: Path) -> None:
    """Every degree has a row without the bank, and with it where the bank reaches."""
    table = evaluate(chosen(model, digits, r_target=(0, 4, K, K + 4)))
    assert (table["model"], table["images"], table["r_source"]) == ("weights", 40, 0)
    rows = {(row["r"], row["bank"]): row for row in table["rows"]}
    assert list(rows) == [(r, b) for r in (0, 4, K, K + 4) for b in (False, True)][:-1]
    assert rows[0, False]["agreement"] == rows[0, True]["agreement"] == 1.0
    assert rows[0, False]["kl"] == pytest.approx(0.0, abs=1e-6)
    ratios = [rows[r, False]["arithmetic_ratio"] for r in (0, 4, K)]
    assert ratios[0] == 1.0 and ratios == sorted(ratios)
    for r in (4, K):
        gain = rows[r, True]["gain"]
        assert gain[0] == pytest.approx(rows[r, True]["top1"] - rows[r, False]["top1"])
        assert gain[1] <= gain[0] <= gain[2]
        assert rows[r, True]["kl"] != rows[r, False]["kl"], "the bank does something"
        assert rows[r, True]["scaling"] == 0.1, "the bank's own"
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    assert table["throughput"] is None and "images_per_s" not in rows[0, False]


def test_each_origin_is_its_own_reference(model: Path, digits: Path) -> None:
    """At ``r_source`` nothing differs from the model's own weights; elsewhere it does."""
    table = evaluate(chosen(model, digits, r_source=(0, 4), r_target=(0, 4, K)))
    rows = {(row["r_source"], row["r"], row["bank"]): row for row in table["rows"]}
    assert len(rows) == 12
    for own in (0, 4):
        assert rows[own, own, True]["kl"] == rows[own, own, False]["top1_loss"][0] == 0.0
    assert rows[4, 0, False]["kl"] > 0 and rows[0, 4, False]["kl"] > 0
    assert rows[0, K, False]["top1"] == rows[4, K, False]["top1"], "plain merging is the same"
    assert rows[0, K, True]["kl"] != rows[4, K, True]["kl"]


def test_gflops_are_those_that_pytorch_counts(model: Path, digits: Path) -> None:
    """Two per multiply-add of one image; only the matching, which is small, is not counted."""
    rows = evaluate(chosen(model, digits, r_target=(0, 4), bank="none"))["rows"]
    vit = load_model(model).vit
    image = zoo.photos(vit, 1)
    for row in rows:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            CompressedViT(vit)(image, row["r"])
        counted = counter.get_total_flops() / 1e9
        assert row["gflops"] == pytest.approx(counted, rel=1e-9 if row["r"] == 0 else 0.02)
    assert rows[1]["gflops"] < rows[0]["gflops"]


def test_scaling_is_chosen_on_validation_images(tmp_path: Path) -> None:
    """One of several scalings, on images of another split, beside the table of the search."""
    model = write_digit_model(tmp_path / "weights")
    data = tmp_path / "digits"
    for split, first in (("train", 0), ("test", 100)):
        indices = range(first, first + 30)
        images, labels = [encoded(i) for i in indices], [digit_label(i) for i in indices]
        write_parquet(data / f"{split}.parquet", images, labels, LABELS)
    found = evaluate(chosen(model, data, scaling=("0.02", "0.3"), val_images=20))
    search = found["scaling_search"]
    assert (search["images"], search["data"]) == (20, "digits, split train")
    best = [row["scaling"] for row in search["rows"] if row["chosen"]]
    assert len(best) == 1 and len(search["rows"]) == 2
    banked = [row for row in found["rows"] if row["bank"]]
    assert [row["scaling"] for row in banked] == best * 2
    assert found["images"] == 30
    with pytest.raises(DataError, match="evaluated on as well"):
        evaluate(chosen(model, data, scaling=("search",), val_split="test"))
    with pytest.raises(DataError, match="--val-data"):
        evaluate(chosen(model, data / "test.parquet", scaling=("search",)))
    alone = evaluate(chosen(model, data, scaling=("0.3",)))
    assert alone["scaling_search"] is None and alone["rows"][-1]["scaling"] == 0.3


def test_speed_is_part_of_the_table(
    model: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each degree's throughput with quartiles, how it was measured, and how far to trust it."""

    def told(runs, budget_s):
        return {r: [1.0, 2.0, 3.0] for r in runs}

    monkeypatch.setattr("tocom_core.throughput.time_rounds", told)
    table = evaluate(chosen(model, digits, throughput_seconds=1.0, throughput_batch=6))
    assert {tuple(row["images_per_s"]) for row in table["rows"]} == {(3.0, 2.5, 4.5)}
    assert table["throughput"]["batch"] == 6
    assert len(table["notes"]) == 1 and "disturbed" in table["notes"][0]


def test_unlabelled_images_give_agreement(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No accuracy, and so nothing to store for the server."""
    data = write_parquet(tmp_path / "bare.parquet", [encoded(i) for i in range(8)])
    table = evaluate(chosen(model, data))
    assert not table["labelled"] and "top1" not in table["rows"][0]
    assert table["rows"][0]["agreement"] == 1.0
    argv = f"--model {model} --data {data} --r-target 4 --device cpu --throughput-seconds 0"
    assert main([*argv.split(), "--store"]) == 1
    captured = capsys.readouterr()
    assert "| 4 |" in captured.out, "what was found is told before storing fails"
    assert "--store needs labels" in captured.err
    assert load_model(model).evaluation is None


def test_command_stores_its_table_for_the_server(
    model: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--store`` changes the header only, and ``load_model`` gives the table."""
    before = load_model(model)
    argv = f"--model {model} --data {digits} --r-target 0 4 --store --output {tmp_path / 'out'}"
    assert main([*argv.split(), "--device", "cpu", "--throughput-seconds", "0.001"]) == 0
    assert "| 4 |" in capsys.readouterr().out
    loaded = load_model(model)
    assert loaded.evaluation is not None
    rows = loaded.evaluation["rows"]
    assert [(row["r"], row["bank"]) for row in rows] == [(r, b) for r in (0, 4) for b in (0, 1)]
    assert all(isinstance(row["top1"], float) for row in rows)
    assert not any("images_per_s" in row or "speedup" in row for row in rows)
    assert str(tmp_path) not in json.dumps(loaded.evaluation)
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written["images"] == 40 and "images_per_s" in written["rows"][0]
    assert (tmp_path / "out" / "evaluation.csv").is_file()
    assert (loaded.digest, loaded.labels) == (before.digest, before.labels)


def test_only_what_a_server_can_serve_is_stored() -> None:
    """The rows of the model's own degree, with one scaling."""

    def row(r_source: int, scaling: float | None) -> dict:
        return {"r_source": r_source, "r": 4, "bank": scaling is not None, "scaling": scaling}

    facts = {"model": "m", "images": 1, "r_source": 0, "data": "d", "split": None, "labelled": True}
    both = {**facts, "rows": [row(0, None), row(0, 0.1), row(8, None), row(8, 0.2)]}
    assert stored_table(both)["rows"] == [row(0, None), row(0, 0.1)]
    with pytest.raises(BankError, match="--scaling-per-degree"):
        stored_table({**facts, "rows": [row(0, 0.1), row(0, 0.2)]})
    with pytest.raises(DataError, match="r_source=0"):
        stored_table({**facts, "rows": [row(8, 0.1)]})


def test_foreign_files_cannot_take_a_table(tmp_path: Path) -> None:
    """Only a file of ours has a place for it."""
    path = tmp_path / "test_vit.pth"
    torch.save(zoo.build("test_vit").state_dict(), path)
    with pytest.raises(CheckpointError):
        store_evaluation(path, {"rows": []})


def test_unreadable_images_stop_or_are_counted(model: Path, tmp_path: Path) -> None:
    """A figure does not hide them."""
    data = write_folder(tmp_path / "digits", 12)
    broken = sorted(data.rglob("*.png"))[3]
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=f"{broken.name}.*--skip-unreadable"):
        evaluate(chosen(model, data))
    table = evaluate(chosen(model, data, skip_unreadable=True))
    assert (table["images"], table["skipped_images"]) == (11, 1)


def test_what_cannot_be_evaluated_is_one_line(
    model: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No stack trace: a place without data, a bank of another model, a degree that is none."""
    other = tmp_path / "other.safetensors"
    Bank(BankHeader("", 64, 2, K, 2)).save(other)
    (tmp_path / "file").write_text("in the way")
    for arguments, message in (
        (["--data", str(tmp_path / "absent")], "no data set at"),
        (["--data", str(digits), "--bank", str(other)], "of width 64, but the model has"),
        (["--data", str(digits), "--r-target", "-1"], "r holds -1"),
        (["--data", str(digits), "--r-source", "0", "9"], "r_source=9"),
        (["--data", str(digits), "--r-source", "0", "9"], "--bank none"),
        (["--data", str(digits), "--scaling", "wide"], "scaling='wide'"),
        (["--data", str(digits), "--output", str(tmp_path / "file")], "file"),
    ):
        assert main(["--model", str(model), "--device", "cpu", *arguments]) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("tocom evaluate: ") and message in error


def test_a_model_without_a_head_is_refused(tmp_path: Path, digits: Path) -> None:
    """Features are no classes."""
    model = write_digit_model(tmp_path / "weights", labels=())
    with pytest.raises(CheckpointError, match="no classifier"):
        evaluate(chosen(model, digits))


def test_a_place_without_parts_is_not_called_a_part(
    model: Path, digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All its images were taken, perhaps training images too: that is told, and no split named."""
    table = evaluate(chosen(model, digits, r_target=(0,)))
    assert (table["split"], table["images"]) == (None, 40)
    assert "has no part named 'test': all its 40 images are taken" in caplog.text
    caplog.clear()
    write_folder(tmp_path / "parts" / "test", 8)
    assert evaluate(chosen(model, tmp_path / "parts", r_target=(0,)))["split"] == "test"
    assert "no part" not in caplog.text


@pytest.mark.parametrize("bank", [True, False, None])
def test_prop_attn_is_as_the_model_was_tuned(
    tmp_path: Path, digits: Path, caplog: pytest.LogCaptureFixture, bank: bool | None
) -> None:
    """The option goes before the header, that before the bank; a warning where these differ."""
    path = write_digit_model(tmp_path / "weights")
    loaded = load_model(path)
    told = {"r_source": 4, "prop_attn": False}
    save_model(path, loaded.vit, loaded.labels, model_args=loaded.model_args, tocom=told)
    own = path.with_name("bank.safetensors")
    header = BankHeader("", 128, 2, K, 2, prop_attn=bool(bank), backbone_digest=loaded.digest)
    Bank(header).save(own)
    name = "none" if bank is None else "auto"
    table = evaluate(chosen(path, digits, r_target=(4,), bank=name))
    assert table["prop_attn"] is False
    assert ("though its bank was trained with prop_attn=True" in caplog.text) == (bank is True)
    caplog.clear()
    table = evaluate(chosen(path, digits, r_target=(4,), bank=name, prop_attn=True))
    assert table["prop_attn"] is True and "prop_attn" not in caplog.text

"""Accuracy per degree, and the table that goes into the model file."""

import json
from pathlib import Path

import pytest
import torch

from tests.core import zoo
from tests.core.pictures import write_folder
from tocom_core import Bank, CompressedViT, load_model
from tocom_core.bank import backbone_digest
from tocom_core.bank_header import BankHeader
from tocom_core.errors import CheckpointError
from tocom_core.evaluation import (
    EvaluateOptions,
    as_markdown,
    evaluate,
    kl_divergence,
    main,
    paired_bootstrap,
    predict,
    top1,
)
from tocom_core.models import save_model, store_evaluation
from tocom_core.sources import open_source

K = 8


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty digits."""
    return write_folder(tmp_path_factory.mktemp("digits"), 40)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model file with a bank beside it, whose deltas are large enough to matter."""
    vit = zoo.named("vit_mini_conv4_32", depth=2, img_size=16)()
    zoo.randomise(vit)
    path = tmp_path / "weights" / "model.safetensors"
    save_model(path, vit, tuple("0123456789"), model_args={"depth": 2, "img_size": 16})
    bank = Bank(BankHeader("", 128, 2, K, 2, backbone_digest=backbone_digest(vit)))
    bank.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in bank.lora_B.parameters():
            parameter.fill_(0.1)
    bank.save(path.with_name("bank.safetensors"))
    return path


def test_predict_gives_all_logits_in_order(model: Path, digits: Path) -> None:
    """Batches do not matter; labels are those of the source."""
    loaded, source = load_model(model), open_source(digits)
    compressed = CompressedViT(loaded.vit)
    logits, labels = predict(compressed, loaded, source, 2, batch_size=7)
    assert logits.shape == (40, 10)
    assert labels.tolist() == [source.label(i) for i in range(40)]
    torch.testing.assert_close(logits, predict(compressed, loaded, source, 2, batch_size=40)[0])
    half, _ = predict(compressed.bfloat16(), loaded, source, 2)
    assert half.dtype == torch.float32


def test_top1_counts_the_right_ones() -> None:
    """The share of images whose highest logit is their class."""
    logits = torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    assert top1(logits, torch.tensor([1, 0, 0, 1])) == 0.5


def test_kl_divergence_is_per_image() -> None:
    """``Σ p log(p/q)`` of each row, in nats; 0 for equal distributions."""
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.25, 0.75], [0.9, 0.1]])
    expected = torch.tensor([0.5 * torch.log(torch.tensor(4 / 3)), 0.0])
    torch.testing.assert_close(kl_divergence(p.log(), q.log() + 7), expected, atol=1e-6, rtol=1e-5)


def test_bootstrap_interval_holds_the_mean_and_narrows() -> None:
    """The interval is about ±1.96 σ/√n around the mean, and the same for the same seed."""
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)) + 0.3
    interval = paired_bootstrap(values)
    error = float(values.std()) / 400**0.5
    assert interval.mean == pytest.approx(float(values.mean()), abs=1e-6)
    assert interval.low == pytest.approx(interval.mean - 1.96 * error, abs=0.3 * error)
    assert interval.high == pytest.approx(interval.mean + 1.96 * error, abs=0.3 * error)
    assert paired_bootstrap(values).as_list() == interval.as_list()
    assert paired_bootstrap(torch.ones(5)).as_list() == [1.0, 1.0, 1.0]


def test_table_compares_plain_merging_and_the_bank(model: Path, digits: Path) -> None:
    """Every degree has a row without the bank, and with it where the bank reaches."""
    chosen = EvaluateOptions(
        model=str(model), data=str(digits), r_target=(0, 4, K, K + 4), device="cpu"
    )
    table = evaluate(chosen)
    assert (table["model"], table["images"], table["r_source"]) == ("weights", 40, 0)
    rows = {(row["r"], row["bank"]): row for row in table["rows"]}
    assert set(rows) == {(r, b) for r in (0, 4, K, K + 4) for b in (False, True)} - {(K + 4, True)}
    assert rows[0, False]["agreement"] == rows[0, True]["agreement"] == 1.0
    assert rows[0, False]["kl"] == pytest.approx(0.0, abs=1e-6)
    ratios = [rows[r, False]["arithmetic_ratio"] for r in (0, 4, K)]
    assert ratios[0] == 1.0 and ratios == sorted(ratios)
    for r in (4, K):
        gain = rows[r, True]["gain"]
        assert gain[0] == pytest.approx(rows[r, True]["top1"] - rows[r, False]["top1"])
        assert gain[1] <= gain[0] <= gain[2]
        assert rows[r, True]["kl"] != rows[r, False]["kl"], "the bank does something"
    text = as_markdown(table)
    assert len(text.splitlines()) == 2 + 4
    json.dumps(table)


def test_command_stores_its_table_for_the_server(
    model: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--store`` changes the header only, and ``load_model`` gives the table."""
    before = load_model(model)
    argv = f"--model {model} --data {digits} --r-target 0 4 --store --output {tmp_path / 'out'}"
    assert main([*argv.split(), "--device", "cpu"]) == 0
    assert "| 4 |" in capsys.readouterr().out
    loaded = load_model(model)
    assert loaded.evaluation is not None
    assert [row["r"] for row in loaded.evaluation["rows"]] == [0, 0, 4, 4]
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["images"] == 40
    assert (loaded.digest, loaded.labels) == (before.digest, before.labels)


def test_foreign_files_cannot_take_a_table(tmp_path: Path) -> None:
    """Only a file of ours has a place for it."""
    path = tmp_path / "test_vit.pth"
    torch.save(zoo.build("test_vit").state_dict(), path)
    with pytest.raises(CheckpointError):
        store_evaluation(path, {"rows": []})


def test_unlabelled_data_and_bad_paths_are_one_line(
    model: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be evaluated is told without a stack trace."""
    flat = tmp_path / "flat"
    flat.mkdir()
    image = next(digits.rglob("*.png"))
    (flat / "a.png").write_bytes(image.read_bytes())
    for data, message in ((flat, "needs a label"), (tmp_path / "absent", "no data set at")):
        assert main(["--model", str(model), "--data", str(data), "--device", "cpu"]) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("tocom evaluate: ") and message in error

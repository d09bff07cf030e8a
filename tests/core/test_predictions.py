"""Running a model and its variants over a data set."""

import threading
from pathlib import Path

import pytest
import torch

from tests.core.digit_model import K, write_digit_model
from tests.core.pictures import digit_label, encoded, write_folder, write_parquet
from tocom_core import Bank, CompressedViT, WeightMerger, load_model
from tocom_core.errors import BankMismatchWarning, CheckpointError, DataError, DegreeError
from tocom_core.image_figures import ImageFigures
from tocom_core.models import LoadedModel
from tocom_core.predictions import Variant, VariantRunner, predict, read_batches
from tocom_core.sources import ImageSource, open_source


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    """Forty digits."""
    return open_source(write_folder(tmp_path_factory.mktemp("digits"), 40))


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    """A small model; its bank lies beside it."""
    return load_model(write_digit_model(tmp_path / "weights"))


@pytest.fixture
def bank(loaded: LoadedModel, tmp_path: Path) -> Bank:
    """That bank."""
    return Bank.load(tmp_path / "weights" / "bank.safetensors")


def test_predict_gives_all_logits_in_order(loaded: LoadedModel, digits: ImageSource) -> None:
    """Batches do not matter; labels are those of the source."""
    compressed = CompressedViT(loaded.vit)
    logits, labels = predict(compressed, loaded, digits, 2, batch_size=7)
    assert logits.shape == (40, 10)
    assert labels.tolist() == [digits.label(i) for i in range(40)]
    torch.testing.assert_close(logits, predict(compressed, loaded, digits, 2, batch_size=40)[0])
    half, _ = predict(compressed.bfloat16(), loaded, digits, 2)
    assert half.dtype == torch.float32


def test_variants_are_what_each_alone_would_be(
    loaded: LoadedModel, bank: Bank, digits: ImageSource
) -> None:
    """Several origins and scalings share a model's weights and do not disturb each other."""
    model = CompressedViT(loaded.vit)
    before = {name: value.clone() for name, value in loaded.vit.state_dict().items()}
    variants = [
        Variant(r_source, r, scaling)
        for r_source in (0, 4)
        for r in (0, 4, K)
        for scaling in (None, 0.05, 0.2)
    ]
    found = VariantRunner(model, loaded, bank, batch_size=16).figures(digits, variants)
    assert list(found) == variants
    for name, value in loaded.vit.state_dict().items():
        assert torch.equal(value, before[name]), name
    for variant in variants:
        r_source, r, scaling = variant
        reference, labels = predict(model, loaded, digits, r_source)
        if scaling is not None:
            merger = WeightMerger(model, bank, r_source, scaling)
            merger.set_target(r)
        alone = ImageFigures.of(predict(model, loaded, digits, r)[0], reference, labels)
        if scaling is not None:
            merger.set_target(r_source)
        torch.testing.assert_close(found[variant].kl, alone.kl, atol=1e-5, rtol=1e-4)
        assert torch.equal(found[variant].right, alone.right), variant
    assert not torch.allclose(found[Variant(0, K, 0.05)].kl, found[Variant(0, K, 0.2)].kl)


class CountingSource:
    """Counts how often each image is read, and notices two readers at once."""

    class_names: tuple[str, ...] = ()

    def __init__(self, images: list[bytes]) -> None:
        self.images = images
        self.reads = [0] * len(images)
        self._reading = threading.Lock()

    def __len__(self) -> int:
        return len(self.images)

    def label(self, index: int) -> int | None:
        """The digit."""
        return digit_label(index)

    def image_bytes(self, index: int) -> bytes:
        """The image."""
        assert self._reading.acquire(blocking=False), "a source is read by one thread at a time"
        try:
            self.reads[index] += 1
            return self.images[index]
        finally:
            self._reading.release()

    def name(self, index: int) -> str:
        """A name."""
        return f"picture {index}"


def test_every_image_is_decoded_once_for_all_variants(loaded: LoadedModel) -> None:
    """However many degrees are asked for."""
    source = CountingSource([encoded(i) for i in range(20)])
    runner = VariantRunner(CompressedViT(loaded.vit), loaded, batch_size=6)
    runner.figures(source, [Variant(0, r) for r in (0, 1, 2, 3)])
    assert source.reads == [1] * 20


def test_an_unreadable_image_is_named_or_skipped(loaded: LoadedModel) -> None:
    """By default it is an error that says which, without advice for one command; else it is out."""
    images = [encoded(i) for i in range(6)]
    images[1] = images[4] = images[5] = b"no image"
    source = CountingSource(images)
    with pytest.raises(DataError, match=r"picture 1 cannot be read.*; mend or remove it$"):
        list(read_batches(source, loaded.transform, 2))
    model = CompressedViT(loaded.vit)
    with pytest.raises(DataError, match=r"picture 1 cannot be read.*; mend or remove it$"):
        predict(model, loaded, source)
    logits, labels = predict(model, loaded, source, batch_size=2, skip_unreadable=True)
    assert logits.shape == (3, 10)
    assert labels.tolist() == [digit_label(i) for i in (0, 2, 3)]
    with pytest.raises(DataError, match=r"picture 1 cannot be read.*; look away$"):
        VariantRunner(model, loaded, advice="look away").figures(source, [Variant(0, 0)])
    batches = list(read_batches(source, loaded.transform, 2, skip_unreadable=True))
    assert [labels.tolist() for _, labels in batches] == [
        [digit_label(0)],
        [digit_label(2), digit_label(3)],
    ]
    with pytest.raises(DataError, match="not one image"):
        list(read_batches(CountingSource([b"", b"x"]), loaded.transform, 2, skip_unreadable=True))


def test_bad_figures_and_bad_degrees_are_errors(
    loaded: LoadedModel, bank: Bank, digits: ImageSource
) -> None:
    """Logits that are not finite make no table; a degree beyond the bank is told before a batch."""
    runner = VariantRunner(CompressedViT(loaded.vit), loaded, bank)
    with pytest.raises(DegreeError, match="r_source=9"):
        runner.figures(digits, [Variant(K + 1, 0, 0.1)])
    with torch.no_grad():
        loaded.vit.head.bias.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        runner.figures(digits, [Variant(0, 0)])


def test_another_backbones_bank_warns_once(
    loaded: LoadedModel, bank: Bank, digits: ImageSource
) -> None:
    """Not once for every scaling."""
    with torch.no_grad():
        loaded.vit.norm.weight.mul_(1.5)
    runner = VariantRunner(CompressedViT(loaded.vit), loaded, bank)
    with pytest.warns(BankMismatchWarning) as told:
        runner.figures(digits, [Variant(0, 4, s) for s in (0.1, 0.2, 0.3)])
    assert len(told) == 1


def test_rows_without_an_image_are_skipped_too(loaded: LoadedModel, tmp_path: Path) -> None:
    """An empty cell of a table counts as unreadable."""
    source = open_source(write_parquet(tmp_path / "a.parquet", [encoded(0), None], [0, 1]))
    batches = list(read_batches(source, loaded.transform, 2, skip_unreadable=True))
    assert [len(images) for images, _ in batches] == [1]

"""Which degrees there are, what they are expected to deliver, and whose they are."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.degrees import (
    device_identity,
    expected_accuracy,
    model_identity,
    most_telling_first,
    product_name,
    relative_work,
    table_accuracies,
)
from tocom_core.bank import Bank, backbone_digest
from tocom_core.bank_header import BankHeader
from tocom_core.compressed_vit import CompressedViT
from tocom_core.latency_profile import Accuracy
from tocom_core.models import LoadedModel, describe

ARCH = "vit_tiny_patch16_224"
SHAPE = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
TABLE = {
    "images": 200,
    "rows": [
        {"r": 0, "bank": False, "top1": 0.9},
        {"r": 3, "bank": True, "top1": 0.7},
        {"r": 3, "bank": False, "top1": 0.5},
    ],
}


@pytest.fixture
def make_model() -> Callable[[], LoadedModel]:
    """Build the same small random model, each time anew."""

    def make() -> LoadedModel:
        torch.manual_seed(1)
        return describe(timm.create_model(ARCH, num_classes=3, **SHAPE).eval(), "small")

    return make


@given(highest=st.integers(0, 40))
def test_each_degree_comes_once_and_the_ends_first(highest: int) -> None:
    """The order visits all degrees."""
    order = list(most_telling_first(highest))
    assert sorted(order) == list(range(highest + 1))
    assert order[:2] == [0, highest][: len(order)]


def test_gaps_close_evenly() -> None:
    """After any number of degrees the widest gap is at most twice the narrowest, rounded up."""
    order = list(most_telling_first(16))
    for known in range(3, 18):
        seen = sorted(order[:known])
        gaps = [b - a for a, b in pairwise(seen)]
        assert max(gaps) <= 2 * min(gaps)


def test_work_falls_with_the_degree(make_model: Callable[[], LoadedModel]) -> None:
    """It is a share of r=0's, and less at each degree that removes more tokens."""
    work = relative_work(CompressedViT(make_model().vit), 5)
    assert list(work) == [0, 1, 2, 3, 4, 5] and work[0] == 1.0
    shares = list(work.values())
    assert all(a > b > 0 for a, b in pairwise(shares))


def test_accuracy_is_that_of_how_it_is_served() -> None:
    """Rows with the bank count with a bank, those without count without."""
    assert expected_accuracy(TABLE, with_bank=False) == {0: 0.9, 3: 0.5}
    assert expected_accuracy(TABLE, with_bank=True) == {3: 0.7}
    assert expected_accuracy(None, with_bank=True) == {}
    assert table_accuracies(TABLE, with_bank=False) == (
        Accuracy(0, 0.9, "evaluation", 200),
        Accuracy(3, 0.5, "evaluation", 200),
    )
    assert table_accuracies(None, with_bank=False) == ()


def test_the_same_model_has_the_same_identity(make_model: Callable[[], LoadedModel]) -> None:
    """It does not depend on the object, and not on whether a float16 copy was loaded."""

    def identity(loaded: LoadedModel) -> dict[str, object]:
        return model_identity(loaded, None, CompressedViT(loaded.vit), None)

    first, other = make_model(), make_model()
    other.vit.half().float()
    assert identity(first) == identity(other)


def test_another_head_is_another_model(make_model: Callable[[], LoadedModel]) -> None:
    """The backbone's digest leaves the head out, and the head decides the accuracy."""
    loaded = make_model()
    model = CompressedViT(loaded.vit)
    before = model_identity(loaded, None, model, None)
    with torch.no_grad():
        loaded.vit.head.weight[0, 0] += 1
    after = model_identity(loaded, None, model, None)
    assert {name for name in before if before[name] != after[name]} == {"head"}


def test_what_decides_the_accuracy_is_in_the_identity(
    make_model: Callable[[], LoadedModel],
) -> None:
    """Bank, its scaling, method and attention; a scaling without a bank means nothing."""
    loaded = make_model()
    merge, no_prop = CompressedViT(loaded.vit), CompressedViT(loaded.vit, prop_attn=False)
    bank = Bank(BankHeader(ARCH, 48, 2, 4, 2, backbone_digest=backbone_digest(loaded.vit)))
    identities = [
        model_identity(loaded, None, merge, None),
        model_identity(loaded, bank, merge, None),
        model_identity(loaded, bank, merge, 0.05),
        model_identity(loaded, None, no_prop, None),
        model_identity(loaded, None, CompressedViT(loaded.vit, "prune"), None),
    ]
    assert all(a != b for i, a in enumerate(identities) for b in identities[:i])
    assert identities[1]["scaling"] == bank.scaling
    assert model_identity(loaded, None, merge, 0.05) == identities[0]


def test_device_identity_names_what_decides_the_speed() -> None:
    """Threads, lanes and backend count on a CPU only."""
    cpu = device_identity(torch.device("cpu"), "float32", 4, 2, "onnx")
    assert (cpu["threads"], cpu["lanes"], cpu["backend"]) == (4, 2, "onnx")
    assert cpu["dtype"] == "float32"
    assert cpu["torch"] == torch.__version__ and cpu["device"]
    mps = device_identity(torch.device("mps"), "float16", 4, 1, "eager")
    assert "threads" not in mps and str(mps["device"]).startswith("mps, ")


def test_the_processors_name(tmp_path: Path) -> None:
    """From the system's own description where there is one, else whatever Python knows."""
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Quick 9000 @ 3 GHz\nmodel name\t: Other\n")
    assert product_name(torch.device("cpu"), info) == "Quick 9000 @ 3 GHz"
    assert product_name(torch.device("cpu"), tmp_path / "missing")

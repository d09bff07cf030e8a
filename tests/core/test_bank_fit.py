"""Whether a bank fits a model, and whether it helps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tests.core import zoo
from tocom_core.bank import Bank
from tocom_core.bank_agreement import evenly, measure, spread_degrees
from tocom_core.bank_fit import Finding, Serving, examine
from tocom_core.bank_header import BankHeader
from tocom_core.compressed_vit import CompressedViT
from tocom_core.errors import DegreeError
from tocom_core.models import LoadedModel, describe
from tocom_core.sources import open_source

K = 4


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """A small model with random weights that all matter."""
    vit = timm.create_model("test_vit", num_classes=7, img_size=64)
    zoo.randomise(vit)
    return describe(vit.eval(), "a model")


def fitting(loaded: LoadedModel, size: float = 0.2, **changes: Any) -> Bank:
    """A bank for the model; with ``changes`` it is one for another."""
    told: dict[str, Any] = {
        "arch": loaded.architecture,
        "embed_dim": loaded.vit.embed_dim,
        "depth": len(loaded.vit.blocks),
        "num_groups": K,
        "rank": 2,
        "scaling": 1.0,
        "backbone_digest": loaded.digest,
    }
    bank = Bank(BankHeader(**{**told, **changes}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return bank


def by_topic(findings: list[Finding]) -> dict[str, Finding]:
    """Each finding under what it is about; none is told twice."""
    assert len({finding.about for finding in findings}) == len(findings)
    return {finding.about: finding for finding in findings}


def test_all_is_well_with_its_own_bank(loaded: LoadedModel) -> None:
    """Everything is looked at, nothing is amiss, and the weights are as before."""
    before = {key: value.clone() for key, value in loaded.vit.state_dict().items()}
    found = by_topic(examine(loaded, fitting(loaded)))
    assert {finding.severity for finding in found.values()} <= {"ok", "note"}
    assert {"sizes", "backbone", "method", "prop_attn", "groups", "degrees", "weights"} == set(
        found
    )
    assert all(torch.equal(value, before[key]) for key, value in loaded.vit.state_dict().items())


WRONG: dict[str, tuple[dict[str, Any], Serving, str, str]] = {
    "depth": ({"depth": 3}, Serving(), "sizes", "error"),
    "width": ({"embed_dim": 32}, Serving(), "sizes", "error"),
    "architecture": ({"arch": "vit_base_patch16_224"}, Serving(), "backbone", "warning"),
    "other weights": ({"backbone_digest": "0" * 64}, Serving(), "backbone", "warning"),
    "unknown weights": ({"backbone_digest": ""}, Serving(), "backbone", "warning"),
    "method": ({}, Serving(method="prune"), "method", "warning"),
    "prop_attn": ({}, Serving(prop_attn=False), "prop_attn", "warning"),
    "max_r": ({}, Serving(max_r=K + 1), "max_r", "error"),
    "too many groups": ({"num_groups": 60}, Serving(), "degrees", "note"),
    "scaling": ({}, Serving(scaling=0.5), "weights", "note"),
}


@pytest.mark.parametrize("case", WRONG)
def test_each_misfit_is_told_with_its_severity(loaded: LoadedModel, case: str) -> None:
    """One thing is wrong, and that alone is told; errors and warnings say how to mend it."""
    changes, serving, about, severity = WRONG[case]
    found = by_topic(examine(loaded, fitting(loaded, **changes), serving))
    assert found[about].severity == severity
    amiss = {topic for topic, finding in found.items() if finding.severity in ("error", "warning")}
    assert amiss <= {about}
    assert bool(found[about].mend) == (severity in ("error", "warning"))


def test_a_degree_of_the_model_that_the_bank_does_not_reach(loaded: LoadedModel) -> None:
    """``r_source`` above K cannot be compensated from."""
    found = by_topic(examine(replace(loaded, r_source=K + 1), fitting(loaded)))
    assert found["r_source"].severity == "error"


def test_a_model_that_was_fine_tuned_from_the_backbone(loaded: LoadedModel) -> None:
    """Other weights than the bank's are fine if the model says where they come from."""
    bank = fitting(loaded, backbone_digest="1" * 64)
    told = by_topic(examine(replace(loaded, trained_from="1" * 64), bank))
    assert told["backbone"].severity == "ok"
    other = by_topic(examine(replace(loaded, trained_from="2" * 64), bank))
    assert other["backbone"].severity == "warning" and "from others" in other["backbone"].message


def test_untrained_groups_are_named(loaded: LoadedModel) -> None:
    """Groups that are zero were never trained."""
    bank = fitting(loaded)
    with torch.no_grad():
        for layer in range(bank.depth):
            for projection in "qv":
                bank.factors(layer, projection)[1][:, bank.rank : 2 * bank.rank] = 0
    finding = by_topic(examine(loaded, bank))["groups"]
    assert finding.severity == "warning" and finding.message.endswith("1→2")


def test_weights_that_overflow_in_the_served_type(loaded: LoadedModel) -> None:
    """What is finite in float32 need not be in float16."""
    bank = fitting(loaded, size=200.0)
    assert by_topic(examine(loaded, bank))["weights"].severity == "ok"
    found = by_topic(examine(loaded, bank, Serving(dtype=torch.float16)))
    assert found["weights"].severity == "error" and "float16" in found["weights"].message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures of noise, and a file that is none."""
    generator = np.random.default_rng(0)
    for number in range(12):
        pixels = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return tmp_path


def test_measured_agreement_is_that_of_the_logits(loaded: LoadedModel, folder: Path) -> None:
    """Shares with and without the bank are what running the model both ways gives."""
    bank = fitting(loaded)
    model = CompressedViT(loaded.vit)
    source = open_source(str(folder))
    table = measure(model, loaded, bank, source, [2, K], batch_size=5)
    assert table.images == 12 and [row.r for row in table.rows] == [2, K]
    pictures = [Image.open(file).convert("RGB") for file in sorted(folder.glob("??.png"))]
    inputs = loaded.normalize(torch.stack([loaded.transform(picture) for picture in pictures]))
    with torch.inference_mode():
        reference = model(inputs, 0).argmax(dim=1)
        plain = model(inputs, K).argmax(dim=1)
    assert table.rows[1].plain == pytest.approx(float((plain == reference).double().mean()))
    assert any(row.plain != row.with_bank or row.kl_plain != row.kl_with_bank for row in table.rows)
    low, high = table.kl_change.low, table.kl_change.high
    assert low <= table.kl_change.mean <= high


def test_degrees_that_say_nothing_are_refused(loaded: LoadedModel, folder: Path) -> None:
    """``r_source`` itself, and what the bank does not cover."""
    run: Callable[[int], object] = lambda r: measure(  # noqa: E731
        CompressedViT(loaded.vit), loaded, fitting(loaded), open_source(str(folder)), [r]
    )
    with pytest.raises(DegreeError, match="leave it out"):
        run(0)
    with pytest.raises(DegreeError, match="covers degrees 0 to 4"):
        run(K + 1)


def test_degrees_and_images_are_spread(loaded: LoadedModel, folder: Path) -> None:
    """Four degrees up to the highest without ``r_source``; images from all of the folder."""
    bank = fitting(loaded, num_groups=16)
    model = CompressedViT(loaded.vit)
    highest = min(16, model.max_r)
    assert spread_degrees(model, bank, 0)[-1] == highest
    assert highest not in spread_degrees(model, bank, highest)
    names = [evenly(open_source(str(folder)), 3).name(i) for i in range(3)]
    assert [Path(name).stem for name in names] == ["00", "04", "08"]

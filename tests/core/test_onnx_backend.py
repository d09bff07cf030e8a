"""The ONNX backend gives PyTorch's answers, at every degree, on weights that change under it."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tests.core import zoo
from tests.core.test_merger import K, make_bank, make_vit
from tocom_core import CompressedViT, WeightMerger
from tocom_core.adaptformer import add_adapters
from tocom_core.errors import UnsupportedModelError
from tocom_core.onnx_backend import OnnxViT, unsupported_onnx

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

TOLERANCE = 2e-5
"""Largest difference of a logit, relative to the largest logit, in float32."""


def images(model: CompressedViT, count: int = 3) -> torch.Tensor:
    """Random ones of the model's size."""
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 3, *model.vit.patch_embed.img_size, generator=generator)


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((first - second).abs().max() / second.abs().max())


def exact(model: CompressedViT, x: torch.Tensor, r: int) -> torch.Tensor:
    """The same forward in float64."""
    model.double()
    try:
        with torch.inference_mode():
            return model(x.double(), r).float()
    finally:
        model.float()


COVERED = [
    *("vit_tiny", "deit_tiny_distilled", "deit3_small", "vit_medium_reg4_gap", "vit_base_siglip"),
    *("vit_mini_conv4_32", "test_vit", "qk_norm", "max_pool", "avgmax_pool", "three_prefix_tokens"),
    *("no_position_embedding", "not_square", "map_pool_with_class_token", "token_pool_fc_norm"),
]


@pytest.mark.parametrize("prop_attn", [True, False])
@pytest.mark.parametrize("name", COVERED)
def test_answers_are_those_of_pytorch(name: str, prop_attn: bool) -> None:
    """Every kind of stem, prefix, norm and pooling, all degrees, odd batches: to float64."""
    vit = (zoo.REGISTERED | zoo.ASSEMBLED)[name]()
    zoo.randomise(vit)
    model = CompressedViT(vit.eval(), prop_attn=prop_attn)
    backend = OnnxViT(model, threads=1)
    for r in range(model.max_r + 1):
        x = images(model, 1 + r % 4)
        with torch.inference_mode():
            found = backend(x, r)
        assert distance(found, exact(model, x, r)) < TOLERANCE, f"r={r}"


@pytest.mark.parametrize("name", ["gated", "res_post_block", "vit_giant_reg4_dinov2"])
def test_what_has_no_graph_is_named(name: str) -> None:
    """A model that the graph does not cover is refused when the backend is made."""
    model = CompressedViT((zoo.REGISTERED | zoo.ASSEMBLED)[name]().eval())
    assert "which the graph does not know" in (unsupported_onnx(model) or "")
    with pytest.raises(UnsupportedModelError, match="block 0 has"):
        OnnxViT(model, threads=1)


def test_adapters_have_no_graph() -> None:
    """They stand inside the MLP: such a model is refused by name and not served without them."""
    vit = make_vit()
    add_adapters(vit, bottleneck=4)
    reason = unsupported_onnx(CompressedViT(vit.eval()))
    assert reason == "block 0 has another MLP, which the graph does not know"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.to(torch.bfloat16), "not torch.bfloat16"),
        (lambda model: setattr(model, "method", "prune"), "'prune'"),
    ],
)
def test_what_does_not_fit_is_named(change: Any, message: str) -> None:
    """Other precisions and methods have their reasons too."""
    model = CompressedViT(make_vit().eval())
    change(model)
    with pytest.raises(UnsupportedModelError, match=message):
        OnnxViT(model, threads=1)


def test_a_switch_of_the_weights_is_seen_at_once() -> None:
    """One session, live weights: after each switch the answers are those of the new degree."""
    model = CompressedViT(make_vit())
    merger, backend = WeightMerger(model, make_bank()), OnnxViT(model, threads=1)
    x, seen = images(model), []
    for r in (0, 3, K, 1, 0, 5):
        merger.set_target(r)
        with torch.inference_mode():
            seen.append(backend(x, 2))
            assert distance(seen[-1], model(x, 2)) < TOLERANCE
    assert distance(seen[1], seen[0]) > 0.01
    assert torch.equal(seen[4], seen[0])


def test_callers_run_side_by_side() -> None:
    """Lanes call one backend from several threads; nobody gets another one's answer."""
    model = CompressedViT(make_vit())
    backend = OnnxViT(model, threads=1)
    inputs = [images(model, 1 + i % 3) + i for i in range(40)]

    def classify(x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return backend(x, 4)

    alone = [classify(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(classify, inputs))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_stem_and_head_are_in_the_graph_where_it_knows_them() -> None:
    """The usual ViT is one graph from pixels to logits; others keep those parts in PyTorch."""
    from tocom_core.onnx_graph import knows_head, knows_stem

    ends = {name: zoo.build(name) for name in ("vit_tiny", "vit_mini_conv4_32", "max_pool")}
    known = {name: (knows_stem(vit), knows_head(vit)) for name, vit in ends.items()}
    assert known["vit_tiny"] == (True, True)
    assert known["vit_mini_conv4_32"] == (False, True)
    assert known["max_pool"] == (True, False)


def test_an_image_of_no_numbers_harms_no_other() -> None:
    """Its logits are no numbers either, and those of its neighbours are what they were."""
    model = CompressedViT(make_vit().eval())
    backend, x = OnnxViT(model, threads=1), images(model)
    with torch.inference_mode():
        whole = backend(x, 3)
        x[1] = torch.nan
        broken = backend(x, 3)
    assert torch.equal(broken[::2], whole[::2])
    assert not torch.isfinite(broken[1]).any()

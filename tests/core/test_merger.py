"""WeightMerger: exact, atomic, and equal to an explicit adapter."""

import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tests.core import zoo
from tocom_core import Bank, CompressedViT, WeightMerger
from tocom_core.bank import backbone_digest
from tocom_core.bank_header import BankHeader
from tocom_core.errors import BankError, BankMismatchWarning, DegreeError

K, RANK = 8, 2


def make_vit(**changes: Any) -> VisionTransformer:
    """A VisionTransformer of 2 blocks of width 32, with random parameters that all matter."""
    vit = zoo.plain(depth=2, **changes)()
    zoo.randomise(vit)
    return vit.eval()


def make_bank(**header: Any) -> Bank:
    """A bank for ``make_vit`` with random ``A`` and ``B``."""
    fields = {"arch": "", "embed_dim": 32, "depth": 2, "num_groups": K, "rank": RANK}
    bank = Bank(BankHeader(**{**fields, **header}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return bank


def snapshot(model: CompressedViT) -> dict[str, Tensor]:
    """A copy of every parameter."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether all parameters are bit for bit equal (−0 is not 0 here)."""
    views = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    return a.keys() == b.keys() and all(
        torch.equal(a[k].view(views[a[k].element_size()]), b[k].view(views[b[k].element_size()]))
        for k in a
    )


WALKS = 112  # for each of three dtypes and three sources: 1,008 in all


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_thousand_walks_end_in_the_checkpoint_s_bits(dtype: torch.dtype) -> None:
    """Any walk of degrees ends, back at r_source, in the very bits that it started from.

    On the way every degree has one set of weights, however it was reached.
    """
    model = CompressedViT(make_vit().to(dtype))
    with torch.no_grad():  # adding a delta of zero would turn −0 into 0
        model.vit.blocks[0].attn.qkv.weight[0, :4] = -0.0
    pristine = snapshot(model)
    pointers = [p.data_ptr() for p in model.parameters()]
    rng = random.Random(0)
    for r_source in (0, 3, K):
        # Room for three of the nine degrees: some switches copy, some build and push others out.
        room = 3 * 2 * 2 * 32 * 32 * dtype.itemsize
        merger = WeightMerger(model, make_bank(), r_source, kept_bytes=room)
        seen = {r_source: pristine}
        for _ in range(WALKS):
            for _ in range(rng.randint(1, 6)):
                r = rng.randint(0, K)
                merger.set_target(r)
                assert merger.r_target == r
                now = snapshot(model)
                assert same_bits(now, seen.setdefault(r, now))
                assert merger.kept_bytes <= room
            merger.set_target(r_source)
            assert same_bits(snapshot(model), pristine)
        assert len(seen) == K + 1, "the walks have visited every degree"
        assert merger.kept_bytes == room
    assert [p.data_ptr() for p in model.parameters()] == pointers, "no storage was replaced"


@pytest.mark.parametrize("r_source", [0, 3, K])
@pytest.mark.parametrize("scaling", [None, 0.02])
@torch.no_grad()
def test_merged_weights_equal_an_adapter_forward(r_source: int, scaling: float | None) -> None:
    """Folding ``ΔW`` in is the same as adding ``x (BA)ᵀ`` to q and v on the fly."""
    bank = make_bank(scaling=0.15)
    factor = 0.15 if scaling is None else scaling
    merged, adapted = CompressedViT(make_vit()), CompressedViT(make_vit())
    merger = WeightMerger(merged, bank, r_source, scaling)
    images = zoo.photos(merged.vit, 3)
    for r in range(K + 1):
        merger.set_target(r)
        sign = 1.0 if r >= r_source else -1.0
        groups = slice(RANK * min(r, r_source), RANK * max(r, r_source))
        handles = [
            block.attn.qkv.register_forward_hook(_adapter(bank, layer, groups, sign * factor))
            for layer, block in enumerate(adapted.vit.blocks)
        ]
        expected = adapted(images, r)
        actual = merged(images, r)
        for handle in handles:
            handle.remove()
        assert (actual - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
        if r != r_source:
            assert (actual - adapted(images, r)).abs().max() > 1e-3, "the bank does something"


def _adapter(bank: Bank, layer: int, groups: slice, factor: float) -> Callable[..., Tensor]:
    """A hook on the fused projection that adds the low-rank path to q and to v."""

    def add(module: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        parts = list(output.chunk(3, dim=-1))
        for projection, index in (("q", 0), ("v", 2)):
            down, up = bank.factors(layer, projection)
            low_rank = inputs[0] @ down[groups].T @ up[:, groups].T
            parts[index] = parts[index] + factor * low_rank
        return torch.cat(parts, dim=-1)

    return add


@pytest.mark.parametrize(("room", "built"), [(0, 6), (1, 4), (2, 3), (8, 3)])
def test_rows_that_were_built_are_kept(
    room: int, built: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many degrees as there is room for, those used last; the weights are the same bits."""
    model, plain = CompressedViT(make_vit()), CompressedViT(make_vit())
    degree_bytes = 2 * 2 * 32 * 32 * 4
    merger = WeightMerger(model, make_bank(), 3, kept_bytes=room * degree_bytes + 1)
    fresh = WeightMerger(plain, make_bank(), 3, kept_bytes=0)
    builds = []
    delta = Bank.delta

    def counted(self: Bank, r_source: int, r_target: int, scaling: float | None = None) -> Any:
        builds.append(r_target)
        return delta(self, r_source, r_target, scaling)

    for r in (1, 2, 3, 2, 1, 1, 3, 8, 8, 3, 8):
        with monkeypatch.context() as patch:
            patch.setattr(Bank, "delta", counted)
            merger.set_target(r)
        fresh.set_target(r)
        assert same_bits(snapshot(model), snapshot(plain))
    assert len(builds) == built


def test_rows_that_are_not_finite_are_not_kept() -> None:
    """A degree is refused each time it is asked for; what was kept stays, and goes on working."""
    model = CompressedViT(make_vit().half())
    bank = make_bank()
    with torch.no_grad():
        down, up = bank.factors(1, "q")
        down[-1], up[:, -1] = 1e4, 1e4
    merger = WeightMerger(model, bank)
    merger.set_target(2)
    before, kept = snapshot(model), merger.kept_bytes
    for _ in range(2):
        with pytest.raises(BankError, match="would not be finite"):
            merger.set_target(K)
        assert merger.kept_bytes == kept
        assert same_bits(snapshot(model), before)
    merger.set_target(0)
    merger.set_target(2)
    assert same_bits(snapshot(model), before)


def test_no_room_keeps_nothing() -> None:
    """With a budget of 0, or below one degree's rows, every switch builds."""
    for budget in (0, 2 * 2 * 32 * 32 * 4 - 1):
        merger = WeightMerger(CompressedViT(make_vit()), make_bank(), kept_bytes=budget)
        for r in (3, 0, 3):
            merger.set_target(r)
        assert merger.kept_bytes == 0


def test_weights_that_were_moved_are_found_again() -> None:
    """After the model's memory was replaced, a switch writes to where the weights are now."""
    model, plain = CompressedViT(make_vit()), CompressedViT(make_vit())
    merger = WeightMerger(model, make_bank())
    merger.set_target(4)
    merger.set_target(0)
    for block in model.vit.blocks:
        block.attn.qkv.weight.data = block.attn.qkv.weight.data.clone()
    merger.set_target(4)
    WeightMerger(plain, make_bank()).set_target(4)
    assert same_bits(snapshot(model), snapshot(plain))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_switch_on_a_gpu_is_one_kernel(dtype: torch.dtype) -> None:
    """A degree that was visited is copied into all layers at once, bit for bit, without waiting."""
    model = CompressedViT(make_vit().to("cuda", dtype))
    merger = WeightMerger(model, make_bank())
    merger.set_target(5)
    expected = snapshot(model)
    merger.set_target(0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
            merger.set_target(5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    kernels = [e for e in trace.events() if e.device_type.name == "CUDA"]
    assert len(kernels) == 1
    assert all(torch.equal(a, expected[name]) for name, a in snapshot(model).items())


def test_only_query_and_value_weights_change() -> None:
    """Keys, biases and everything else keep their bits; every layer's q and v rows change."""
    model = CompressedViT(make_vit())
    before = snapshot(model)
    WeightMerger(model, make_bank()).set_target(5)
    for name, new in snapshot(model).items():
        old = before[name]
        if name.endswith("attn.qkv.weight"):
            assert torch.equal(new[32:64], old[32:64])
            assert (new[:32] != old[:32]).any()
            assert (new[64:] != old[64:]).any()
        else:
            assert torch.equal(new, old)


def test_half_precision_sums_in_float32_and_casts_once() -> None:
    """The live weight is the float32 sum of pristine weight and delta, rounded once."""
    model = CompressedViT(make_vit().to(torch.bfloat16))
    bank = make_bank()
    pristine = snapshot(model)
    WeightMerger(model, bank, 2).set_target(7)
    for layer, (query, value) in bank.delta(2, 7).items():
        name = f"vit.blocks.{layer}.attn.qkv.weight"
        live, old = dict(model.named_parameters())[name], pristine[name].float()
        assert torch.equal(live[:32], (old[:32] + query).bfloat16())
        assert torch.equal(live[64:], (old[64:] + value).bfloat16())


def test_starts_at_r_source_and_changes_nothing() -> None:
    """Making a merger leaves the weights alone; the first target is r_source."""
    model = CompressedViT(make_vit())
    before = snapshot(model)
    merger = WeightMerger(model, make_bank(), 4)
    assert (merger.r_source, merger.r_target, merger.num_groups) == (4, 4, K)
    assert same_bits(snapshot(model), before)


def test_a_weight_that_would_overflow_changes_nothing() -> None:
    """If one layer's new weight is not finite in float16, no layer is touched."""
    model = CompressedViT(make_vit().half())
    bank = make_bank()
    with torch.no_grad():  # only the last group of the last layer is too large
        down, up = bank.factors(1, "v")
        down[-1], up[:, -1] = 1e4, 1e4
    merger = WeightMerger(model, bank)
    merger.set_target(K - 1)
    before = snapshot(model)

    with pytest.raises(BankError, match=f"r={K} would not be finite in torch.float16"):
        merger.set_target(K)

    assert merger.r_target == K - 1
    assert same_bits(snapshot(model), before)
    merger.set_target(0)
    assert merger.r_target == 0


@pytest.mark.parametrize("r", [K + 1, -1, 2.0, True], ids=repr)
def test_a_degree_without_compensation_changes_nothing(r: Any) -> None:
    """Degrees outside 0…K are refused, as target and as source."""
    model = CompressedViT(make_vit())
    merger = WeightMerger(model, make_bank())
    merger.set_target(3)
    before = snapshot(model)
    with pytest.raises(DegreeError, match=f"0 to {K}"):
        merger.set_target(r)
    assert merger.r_target == 3
    assert same_bits(snapshot(model), before)
    with pytest.raises(DegreeError, match="r_source"):
        WeightMerger(model, make_bank(), r)


@pytest.mark.parametrize("wrong", [{"depth": 3}, {"embed_dim": 16}], ids=str)
def test_a_bank_of_another_depth_or_width_is_refused(wrong: dict[str, int]) -> None:
    """The error names both sizes of both."""
    with pytest.raises(BankError, match="2 of width 32"):
        WeightMerger(CompressedViT(make_vit()), make_bank(**wrong))


def test_heads_of_another_width_are_refused() -> None:
    """Where q, k and v are not D rows each, the delta has no place."""
    vit = make_vit()
    vit.blocks[1].attn = Attention(32, num_heads=2, attn_head_dim=8)
    with pytest.raises(BankError, match="block 1"):
        WeightMerger(CompressedViT(vit), make_bank())


def test_works_inside_inference_mode() -> None:
    """The engine switches and runs in inference mode; the weights stay ordinary ones."""
    model = CompressedViT(make_vit())
    before = snapshot(model)
    with torch.inference_mode():
        merger = WeightMerger(model, make_bank())
        merger.set_target(5)
        model(zoo.photos(model.vit), 5)
        merger.set_target(0)
    assert same_bits(snapshot(model), before)
    assert all(not p.is_inference() and p.requires_grad for p in model.parameters())


# --- Banks of another backbone --------------------------------------------------------------------


def named_model() -> CompressedViT:
    """A model that knows its timm name."""
    return CompressedViT(zoo.named("test_vit", img_size=32, depth=2, embed_dim=32)().eval())


def test_another_architecture_only_warns() -> None:
    """A bank of another architecture of the same size can be used; the warning names both."""
    with pytest.warns(BankMismatchWarning, match="trained on vit_other, the model is test_vit"):
        WeightMerger(named_model(), make_bank(arch="vit_other")).set_target(3)


def test_another_digest_only_warns() -> None:
    """A bank of other weights can be used, with a warning."""
    with pytest.warns(BankMismatchWarning, match="other weights"):
        WeightMerger(named_model(), make_bank(backbone_digest="of another")).set_target(3)


def test_what_belongs_together_does_not_warn() -> None:
    """No warning for the bank's own backbone, nor for a model fine-tuned from it that says so."""
    model = named_model()
    own = make_bank(backbone_digest=backbone_digest(model.vit))
    tagged = make_bank(arch="test_vit.some_tag")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WeightMerger(model, own)
        WeightMerger(model, tagged)
        WeightMerger(model, make_bank(backbone_digest="b"), trained_from="b")

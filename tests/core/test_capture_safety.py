"""Nothing in the forward pass waits for the device or asks for its values.

A CUDA graph records what is put on the device; where Python looks at a value, it would record one
answer for good, and in fact refuses. Fake tensors have shapes and no values, so they find every
such look without a GPU, and can pretend to lie on one.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests.core import zoo
from tocom_core import CompressedViT
from tocom_core.pixels import Normalise

MANY = 1000


def run_fake(model: CompressedViT, device: str, r: int, count: int = 3) -> Tensor:
    """uint8 images to probabilities with weights and images that have no values."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors}
    size = (count, 3, *model.vit.patch_embed.img_size)
    with FakeTensorMode(), torch.inference_mode():
        weights = {
            name: torch.empty(shape, dtype=dtype, device=device)
            for name, (shape, dtype) in shapes.items()
        }
        normalise = Normalise((0.5,) * 3, (0.5,) * 3, torch.device(device), torch.float32)
        pixels = normalise(torch.empty(size, dtype=torch.uint8, device=device))
        logits = torch.func.functional_call(model, weights, (pixels, r))
        return logits.float().softmax(dim=-1)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", zoo.COVERED)
def test_merging_looks_at_no_value(name: str, device: str) -> None:
    """Every kind of model, at none, few and all tokens; on a pretended GPU too."""
    model = CompressedViT(zoo.build(name))
    for r in (0, 1, 3, MANY):
        assert run_fake(model, device, r).device.type == device


def test_all_degrees_have_shapes_of_their_own() -> None:
    """At each degree the tokens that are left are known without computing."""
    model = CompressedViT(zoo.build("vit_tiny"))
    for r in range(model.max_r + 1):
        for count in (1, 5):
            assert run_fake(model, "cuda", r, count).shape == (count, 7)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_pruning_looks_at_no_value(device: str) -> None:
    """Likewise with the class token's attention."""
    model = CompressedViT(zoo.build("vit_tiny"), "prune")
    for r in (1, 3, MANY):
        run_fake(model, device, r)


@pytest.mark.parametrize("look", [lambda x: float(x.max()), lambda x: bool((x > 0).any())])
def test_a_look_at_a_value_is_found(
    look: Callable[[Tensor], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests above can fail."""
    model = CompressedViT(zoo.build("vit_tiny"))
    remove = CompressedViT._remove

    def looking(self: CompressedViT, attended: object, scale: float, x: Tensor, *rest: object):
        look(x)
        return remove(self, attended, scale, x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(CompressedViT, "_remove", looking)
    with pytest.raises(DataDependentOutputException):
        run_fake(model, "cuda", 1)

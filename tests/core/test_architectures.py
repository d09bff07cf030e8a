"""The default model's own architecture."""

import timm
import torch

from tests.core import zoo
from tocom_core import CompressedViT


def test_default_architecture_is_what_the_service_documents() -> None:
    """64 patches of 32 x 32 pixels, 10 classes, and r=12 is a degree that changes something."""
    vit = timm.create_model("vit_mini_conv4_32")
    model = CompressedViT(vit.eval())
    assert (model.num_patches, vit.num_classes, vit.patch_embed.img_size) == (64, 10, (32, 32))
    assert model.max_r >= 16
    zoo.randomise(vit)
    with torch.inference_mode():
        images = zoo.photos(vit)
        assert model(images).shape == (2, 10)
        assert not torch.equal(model(images, 12), model(images, 11))


def test_it_is_small() -> None:
    """In float16 it stays far below the 12 MB that model and bank may take."""
    parameters = sum(p.numel() for p in timm.create_model("vit_mini_conv4_32").parameters())
    assert 2 * parameters < 6_000_000


def test_arguments_reach_timm() -> None:
    """Like any architecture of timm it takes other sizes and heads."""
    vit = timm.create_model("vit_mini_conv4_32", depth=2, img_size=16, num_classes=3)
    assert (len(vit.blocks), vit.patch_embed.num_patches, vit.num_classes) == (2, 16, 3)

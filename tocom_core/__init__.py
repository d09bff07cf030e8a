"""ToCom: token merging and token compensation for timm Vision Transformers.

The names below are the stable public API.  They are imported on first use, so that the torch-free
modules of this package (``errors``, ``operating_point``) can be imported without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tocom_core.bank import Bank
    from tocom_core.compressed_vit import CompressedViT
    from tocom_core.merger import WeightMerger
    from tocom_core.merging import bipartite_soft_matching
    from tocom_core.models import LoadedModel, load_model

__version__ = "0.1.0"

__all__ = [
    "Bank",
    "CompressedViT",
    "LoadedModel",
    "WeightMerger",
    "bipartite_soft_matching",
    "load_model",
]

_HOMES = {
    "Bank": "tocom_core.bank",
    "CompressedViT": "tocom_core.compressed_vit",
    "LoadedModel": "tocom_core.models",
    "WeightMerger": "tocom_core.merger",
    "bipartite_soft_matching": "tocom_core.merging",
    "load_model": "tocom_core.models",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tocom_core' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

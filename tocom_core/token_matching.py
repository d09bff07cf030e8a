"""Which code pairs and merges tokens: Triton kernels on a CUDA device, else PyTorch's operations.

The kernels (`merging_kernels`) are taken only where Triton is installed and a trial on the device
gives what PyTorch gives: Triton compiles when it is first called, for which a machine may lack a
compiler or support of its GPU.  `merging` then does the same, in more and smaller steps.
"""

import importlib.util
import logging
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from tocom_core.attention import key_metric
from tocom_core.merging import Matching, bipartite_soft_matching

logger = logging.getLogger(__name__)

MOST_PATCHES = 2048
"""One program ranks all A-tokens of an image; more would not fit."""
WIDEST_HEAD = 128
"""Two tiles of such keys fit into the memory that a block of threads shares, on any GPU."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def match_keys(key: Tensor, r: int, num_prefix_tokens: int = 1) -> Matching:
    """Pair up to ``r`` patch tokens by the similarity of their keys, summed over the heads.

    Args:
        key: ``(B, H, N, d)``.
        r: how many tokens to remove; cut to half of the patch tokens.
        num_prefix_tokens: how many tokens at the front never merge.

    See ``bipartite_soft_matching``.
    """
    if not torch.compiler.is_compiling() and kernels_fit(
        key.device.type, key.dtype, key.shape[2] - num_prefix_tokens, key.shape[3]
    ):
        index = key.device.index or 0
        if kernels_work(index):
            from tocom_core.merging_kernels import match_keys_fused

            return match_keys_fused(key, r, num_prefix_tokens)
    return bipartite_soft_matching(key_metric(key), r, num_prefix_tokens)


def kernels_fit(device_type: str, dtype: torch.dtype, patches: int, head_dim: int) -> bool:
    """Whether the kernels are made for such keys.

    Under `torch.compile` they are not taken: the compiler fuses PyTorch's operations itself.
    """
    return (
        device_type == "cuda"
        and dtype in _DTYPES
        and patches <= MOST_PATCHES
        and head_dim <= WIDEST_HEAD
    )


@lru_cache
def kernels_work(index: int) -> bool:
    """Whether Triton runs on CUDA device ``index`` and gives PyTorch's answer; tried once.

    A graph that is being captured takes no trial (it waits for the device): whoever captures has
    run the model before.
    """
    if importlib.util.find_spec("triton") is None:
        logger.info("Triton is not installed: tokens are matched operation by operation")
        return False
    try:
        from tocom_core.merging_kernels import match_keys_fused

        agrees = _trial(match_keys_fused, torch.device("cuda", index))
    except Exception as error:  # whatever a compiler, a driver or a missing tool may raise
        logger.warning("Triton does not work here, tokens are matched without it: %s", error)
        return False
    if not agrees:
        logger.warning("Triton's kernels disagree with PyTorch here and are not used")
    return agrees


def _trial(match_fused: Callable[[Tensor, int, int], Matching], device: torch.device) -> bool:
    """Match and merge a few tokens both ways; no similarities are close to each other."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        key = torch.randn(2, 2, 25, 16, generator=generator).to(device)
        x = torch.randn(2, 25, 24, generator=generator).to(device)
        size = torch.randint(1, 9, (2, 25, 1), generator=generator).float().to(device)
        fused, plain = match_fused(key, 5, 1), bipartite_soft_matching(key_metric(key), 5, 1)
        if fused.rows is None or plain.rows is None or not torch.equal(fused.rows, plain.rows):
            return False
        merged, expected = fused.merge(x, size), plain.merge(x, size)
        return torch.equal(merged[1], expected[1]) and torch.allclose(
            merged[0], expected[0], rtol=1e-5, atol=1e-6
        )

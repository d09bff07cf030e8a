"""A compressed ViT whose blocks are run by ONNX Runtime, on the model's own live weights.

The fused query, key and value weights are bound in place, as they lie in PyTorch's memory: when a
`WeightMerger` rewrites them, the next run sees it, without a new session or a copy. All other
parameters of the blocks are read when the session is made. One session serves r=0, another one all
other degrees; stem, pooling and head are the model's own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tocom_core.compressed_vit import CompressedViT
from tocom_core.errors import UnsupportedModelError
from tocom_core.schedule import patch_counts, resolve_schedule

INSTALL = "pip install 'tocom-serve[onnx]'"


def unsupported_onnx(model: CompressedViT) -> str | None:
    """Why ``OnnxViT`` cannot run this model here; ``None`` if it can."""
    try:
        import onnxruntime  # noqa: F401

        from tocom_core.onnx_graph import unsupported_graph
    except ImportError:
        return f"ONNX Runtime is not installed: {INSTALL}"
    weight = next(model.parameters())
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return f"it runs float32 on the CPU, not {weight.dtype} on {weight.device}"
    return unsupported_graph(model)


class OnnxViT:
    """Runs a `CompressedViT` with ONNX Runtime.

    Args:
        model: float32, on the CPU, in eval mode; whoever rewrites its ``qkv`` weights does so in
            place and not during a call.
        threads: of one call. With 1 a call runs on its calling thread alone, and several callers
            run side by side.
        profile_to: begin of the names of files for ONNX Runtime's own record of every node, see
            ``end_profiling``; costs time.

    Raises:
        UnsupportedModelError: see ``unsupported_onnx``.
    """

    def __init__(
        self, model: CompressedViT, threads: int, *, profile_to: Path | None = None
    ) -> None:
        reason = unsupported_onnx(model)
        if reason is not None:
            raise UnsupportedModelError(f"no ONNX backend for this model: {reason}")
        self._model = model
        self._threads = threads
        self._profile_to = profile_to
        self._plain = self._session(merging=False)
        self._merging = self._session(merging=True)
        self._weights = [block.attn.qkv.weight.detach() for block in model.vit.blocks]

    def __call__(self, images: Tensor, r: int | Sequence[int] = 0) -> Tensor:
        """Classify: float32 ``(B, 3, H, W)``, normalised, to float32 logits ``(B, num_classes)``.

        Raises:
            ScheduleError: ``r`` is no valid schedule for this model.
        """
        removed = self._removed(resolve_schedule(r, self._model.depth))
        vit = self._model.vit
        tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
        if not any(removed):
            features, sizes = self._run(self._plain, tokens, None)
        elif all(removed):
            features, sizes = self._run(self._merging, tokens, torch.tensor(removed))
        else:  # so much that the last blocks have nothing left to merge
            return self._model(images, r)  # type: ignore[no-any-return]
        return self._model.forward_head(vit.norm(features), sizes)

    def end_profiling(self) -> tuple[Path, Path]:
        """Write what was recorded without merging, and with it; to be called once, at the end."""
        return Path(self._plain.end_profiling()), Path(self._merging.end_profiling())

    def _removed(self, schedule: Sequence[int]) -> list[int]:
        """How many tokens each block really removes."""
        counts = patch_counts(self._model.num_patches, schedule)
        return [before - after for before, after in counts]

    def _run(
        self, session: Any, tokens: Tensor, removed: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Run the blocks: ``(B, N, D)`` to features ``(B, N', D)`` and sizes ``(B, N', 1)``."""
        batch, count, width = tokens.shape
        binding, tokens, sizes = session.io_binding(), tokens.contiguous(), None
        if removed is not None:
            count -= int(removed.sum())
            sizes = torch.empty(batch, count, 1)
            _bind(binding.bind_input, "removed", removed, np.int64)
            _bind(binding.bind_output, "sizes", sizes, np.float32)
        features = torch.empty(batch, count, width)
        _bind(binding.bind_input, "tokens", tokens, np.float32)
        _bind(binding.bind_output, "features", features, np.float32)
        for number, weight in enumerate(self._weights):
            _bind(binding.bind_input, f"qkv{number}", weight, np.float32)
        session.run_with_iobinding(binding)
        return features, sizes

    def _session(self, *, merging: bool) -> Any:
        import onnxruntime

        from tocom_core.onnx_graph import build_graph

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        # Threads that spin between batches would take the cores from decoding.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self._profile_to is not None:
            options.enable_profiling = True
            options.profile_file_prefix = f"{self._profile_to}{'-merging' if merging else ''}"
        graph = build_graph(self._model, merging=merging)
        return onnxruntime.InferenceSession(
            graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


def _bind(bind: Any, name: str, tensor: Tensor, dtype: Any) -> None:
    """Bind a tensor's memory as it lies; it must outlive the run."""
    bind(name, "cpu", 0, dtype, tuple(tensor.shape), tensor.data_ptr())

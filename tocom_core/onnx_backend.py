"""A compressed ViT that is run by ONNX Runtime, on the model's own live weights.

The query and value weights are bound in place, as they lie in PyTorch's memory: when a
`WeightMerger` rewrites them, the next run sees it, without a new session or a copy. All other
parameters are read when the session is made. One session serves r=0, another one all other degrees.
Stems, poolings and heads that the graph does not know stay in PyTorch (`tocom_core.onnx_graph`).
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

Blocks = Sequence[tuple[int, int]]
"""Patch tokens before and after each block."""

_BOUNDED_SPINNING = (1, 27)
"""The first version of ONNX Runtime that surely knows ``spin_duration_us``."""


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


def can_spin() -> bool:
    """Whether the ONNX Runtime that is installed can spin for a limited time."""
    import onnxruntime

    version = onnxruntime.__version__.split(".")
    return tuple(int(part) for part in version[:2]) >= _BOUNDED_SPINNING


class OnnxViT:
    """Runs a `CompressedViT` with ONNX Runtime.

    Args:
        model: float32, on the CPU, in eval mode; whoever rewrites its query and value weights
            does so in place and not during a call.
        threads: of one call. With 1 a call runs on its calling thread alone, and several callers
            run side by side.
        spin_us: how many microseconds a thread of several keeps its core while it waits for the
            next operation; 0 gives it back at once. See `can_spin`.
        profile_to: begin of the names of files for ONNX Runtime's own record of every node, see
            ``end_profiling``; costs time.

    Raises:
        UnsupportedModelError: see ``unsupported_onnx``.
    """

    def __init__(
        self,
        model: CompressedViT,
        threads: int,
        spin_us: int = 0,
        *,
        profile_to: Path | None = None,
    ) -> None:
        reason = unsupported_onnx(model)
        if reason is not None:
            raise UnsupportedModelError(f"no ONNX backend for this model: {reason}")
        from tocom_core.onnx_merging import merging_plan

        self._plan = merging_plan
        self._model = model
        self._threads = threads
        self._spin_us = spin_us
        self._profile_to = profile_to
        self._plain = self._session(merging=False)
        self._merging = self._session(merging=True)
        self._weights: dict[str, Tensor] = {}
        for number, block in enumerate(model.vit.blocks):
            query, _, value = block.attn.qkv.weight.detach().chunk(3)
            self._weights |= {f"query{number}": query, f"value{number}": value}

    def __call__(self, images: Tensor, r: int | Sequence[int] = 0) -> Tensor:
        """Classify: float32 ``(B, 3, H, W)``, normalised, to float32 logits ``(B, num_classes)``.

        Raises:
            ScheduleError: ``r`` is no valid schedule for this model.
        """
        schedule = resolve_schedule(r, self._model.depth)
        blocks = list(patch_counts(self._model.num_patches, schedule))
        merging = [before > after for before, after in blocks]
        if not any(merging):
            return self._run(self._plain, images, None)
        if not all(merging):  # so much that the last blocks have nothing left to merge
            return self._model(images, r)  # type: ignore[no-any-return]
        return self._run(self._merging, images, blocks)

    def end_profiling(self) -> tuple[Path, Path]:
        """Write what was recorded without merging, and with it; to be called once, at the end."""
        return Path(self._plain.end_profiling()), Path(self._merging.end_profiling())

    def _run(self, session: Any, images: Tensor, blocks: Blocks | None) -> Tensor:
        """Classify, with what happens to the patches of each block; None merges nothing."""
        model, vit = self._model, self._model.vit
        batch, prefix = len(images), int(vit.num_prefix_tokens)
        left = prefix + (model.num_patches if blocks is None else blocks[-1][1])
        binding, made = session.io_binding(), {}
        for name, shape in self._outputs(session, batch, left).items():
            made[name] = torch.empty(shape)
            _bind(binding.bind_output, name, made[name])
        first = session.get_inputs()[0].name
        x = images if first == "pixels" else vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
        x = x.contiguous()
        _bind(binding.bind_input, first, x)
        if blocks is not None:
            plan = torch.tensor(self._plan(blocks, prefix))
            _bind(binding.bind_input, "plan", plan)
        for name, weight in self._weights.items():
            _bind(binding.bind_input, name, weight)
        session.run_with_iobinding(binding)
        if "logits" in made:
            return made["logits"]
        return model.forward_head(vit.norm(made["features"]), made.get("sizes"))

    def _outputs(self, session: Any, batch: int, left: int) -> dict[str, tuple[int, ...]]:
        """The shapes of what a session computes, with so many tokens left."""
        known = {"B": batch, "left": left}
        return {
            output.name: tuple(known.get(size, size) for size in output.shape)
            for output in session.get_outputs()
        }

    def _session(self, *, merging: bool) -> Any:
        import onnxruntime

        from tocom_core.onnx_graph import build_graph

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        # Threads that spin between batches would take the cores from decoding.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        spins = "1" if self._spin_us else "0"
        options.add_session_config_entry("session.intra_op.allow_spinning", spins)
        if self._spin_us:
            options.add_session_config_entry(
                "session.intra_op.spin_duration_us", str(self._spin_us)
            )
        if self._profile_to is not None:
            options.enable_profiling = True
            options.profile_file_prefix = f"{self._profile_to}{'-merging' if merging else ''}"
        graph = build_graph(self._model, merging=merging)
        return onnxruntime.InferenceSession(
            graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


def _bind(bind: Any, name: str, tensor: Tensor) -> None:
    """Bind a tensor's memory as it lies; it must outlive the run."""
    dtype = np.float32 if tensor.dtype == torch.float32 else np.int64
    bind(name, "cpu", 0, dtype, tuple(tensor.shape), tensor.data_ptr())

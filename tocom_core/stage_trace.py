"""Traces forward passes stage by stage, with PyTorch's profiler or ONNX Runtime's own.

The model that serves is not touched: stages are marked by a sub-class that exists only here, around
the very same steps, so that marks cost nothing where nobody traces.  A whole batch runs on all
threads; lanes and CUDA graphs are the server's and left out.  At r=0 the blocks are run one by one,
which is what plain timm does.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from tocom_core.compressed_vit import CompressedViT
from tocom_core.merging import Matching
from tocom_core.onnx_backend import OnnxViT
from tocom_core.stages import (
    STAGES,
    WHOLE,
    Breakdown,
    DeviceWork,
    Span,
    device_seconds,
    faster_half,
    own_seconds,
)

MARK = "tocom/"
"""Begin of the names that stages have in a trace."""

Normalize = Callable[[Tensor, torch.dtype], Tensor]


class StagedViT(CompressedViT):
    """A compressed ViT, on the same parameters, that marks its stages for the profiler.

    Args:
        model: is not changed.
    """

    def __init__(self, model: CompressedViT) -> None:
        super().__init__(model.vit, model.method, model.prop_attn)
        self.attention = model.attention

    def forward_features(
        self, images: Tensor, r: int | Sequence[int] = 0
    ) -> tuple[Tensor, Tensor | None]:
        """As the model's; what is neither stem nor block is the last norm."""
        with _stage("head"):
            return super().forward_features(images, r)

    def forward(self, images: Tensor, r: int | Sequence[int] = 0) -> Tensor:
        """As the model's, block by block at r=0 too."""
        x, size = self.forward_features(images, r)
        with _stage("head"):
            return self.forward_head(x, size)

    def _stem(self, images: Tensor) -> Tensor:
        with _stage("stem"):
            return super()._stem(images)

    def _block(self, *given: Any) -> tuple[Tensor, Tensor | None]:
        with _stage("mlp"):
            return super()._block(*given)

    def _attend(self, *given: Any) -> tuple[Tensor, Tensor | None]:
        with _stage("attention"):
            return super()._attend(*given)

    def _remove(self, *given: Any) -> tuple[Tensor, Tensor | None]:
        *_, removed = given
        with _stage("merging") if removed else nullcontext():
            return super()._remove(*given)

    def _match(self, *given: Any) -> Matching:
        with _stage("matching"):
            return super()._match(*given)


@torch.inference_mode()
def trace_eager(
    model: CompressedViT, normalize: Normalize, images: Tensor, r: int, runs: int, trace: Path
) -> Breakdown:
    """Trace PyTorch.

    Args:
        model: in eval mode, on its device.
        normalize: uint8 images on the device to the model's input in a dtype.
        images: uint8 ``(B, 3, H, W)`` on the CPU.
        r: the degree.
        runs: passes with the profiler, and as many without; at least 1.
        trace: a Chrome trace is written there, of a warm-up and the last pass.
    """
    staged = StagedViT(model).eval()
    weight = next(model.parameters())

    def classify(network: CompressedViT) -> None:
        with _stage("copy"):
            there = images.to(weight.device)
        with _stage("preprocess"):
            pixels = normalize(there, weight.dtype)
        logits = network(pixels, r)
        with _stage("head"):
            scores = logits.float().softmax(dim=-1)
        with _stage("copy"):
            scores.cpu()

    on_gpu = weight.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    passes, untraced = [], []
    _seconds(lambda: classify(model))
    for _ in range(runs):  # in turn, so that a machine's moods meet both
        untraced.append(_seconds(lambda: classify(model)))
        with profile(activities=activities, acc_events=True) as profiler:
            classify(staged)  # the profiler's own first steps are slow
            with _stage(WHOLE):
                classify(staged)
        passes += _passes(profiler.events(), on_gpu)
    profiler.export_chrome_trace(str(trace))
    return _breakdown("eager", r, len(images), passes, untraced)


@torch.inference_mode()
def trace_onnx(
    model: CompressedViT, normalize: Normalize, images: Tensor, r: int, runs: int, trace: Path
) -> Breakdown:
    """Trace ONNX Runtime; see ``trace_eager``.  ``trace`` becomes what ONNX Runtime recorded.

    What runs in PyTorch before and behind the session is timed by hooks on the model's own layers.

    Raises:
        UnsupportedModelError: ONNX Runtime cannot run this model.
    """
    threads = torch.get_num_threads()
    quiet = OnnxViT(model, threads)
    dtype = next(model.parameters()).dtype

    def classify(network: OnnxViT, ready: Callable[[], None] = lambda: None) -> Tensor:
        pixels = normalize(images, dtype)
        ready()
        return network(pixels, r).softmax(dim=-1)

    outside, untraced = [], []
    with tempfile.TemporaryDirectory() as folder:
        traced = OnnxViT(model, threads, profile_to=Path(folder) / "onnx")
        for network in (quiet, traced):
            classify(network)
        for _ in range(runs):
            untraced.append(_seconds(lambda: classify(quiet)))
            outside.append(_outside(model, partial(classify, traced)))
        plain, merging = traced.end_profiling()
        recorded = (merging if r else plain).read_text()
    trace.write_text(recorded)
    # A degree at which the last blocks have nothing to merge is run by PyTorch, without a session.
    inside = session_seconds(json.loads(recorded))[-runs:] or [{}] * runs
    passes = [_joined(*both) for both in zip(outside, inside, strict=True)]
    return _breakdown("onnx", r, len(images), passes, untraced)


def session_seconds(events: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Stages of each run of a session, from ONNX Runtime's profile.

    A node belongs to the stage that its name begins with; what no node took is ``other``.
    """
    runs = [event for event in events if event["name"] == "model_run"]
    nodes = [event for event in events if event["name"].endswith("_kernel_time")]
    found = []
    for run in runs:
        seconds = {"other": run["dur"] / 1e6}
        for node in nodes:
            if run["ts"] <= node["ts"] < run["ts"] + run["dur"]:
                stage = node["name"].split("/")[0]
                stage = stage if stage in STAGES else "other"
                seconds[stage] = seconds.get(stage, 0.0) + node["dur"] / 1e6
                seconds["other"] -= node["dur"] / 1e6
        found.append(seconds)
    return found


def _breakdown(
    backend: str, r: int, batch: int, passes: Sequence[dict[str, float]], untraced: list[float]
) -> Breakdown:
    seconds = faster_half(passes)
    whole = faster_half([{WHOLE: value} for value in untraced])
    return Breakdown(backend, r, batch, seconds, sum(seconds.values()), whole[WHOLE])


def _outside(model: CompressedViT, job: Callable[[Callable[[], None]], object]) -> dict[str, float]:
    """One pass: ``whole``, and what PyTorch did of it; the job says when its pixels are ready."""
    marks: dict[str, float] = {}

    def mark(name: str) -> Callable[..., None]:
        return lambda *_: marks.update({name: time.perf_counter()})

    vit = model.vit
    handles = [
        vit.patch_embed.register_forward_pre_hook(mark("stem")),
        vit.norm_pre.register_forward_hook(mark("blocks")),
        vit.norm.register_forward_pre_hook(mark("head")),
    ]
    started = time.perf_counter()
    try:
        job(mark("pixels"))
        ended = time.perf_counter()
    finally:
        for handle in handles:
            handle.remove()
    seconds = {WHOLE: ended - started, "preprocess": marks["pixels"] - started}
    if "stem" in marks:  # a graph that knows the stem leaves none to PyTorch
        seconds["stem"] = marks["blocks"] - marks["stem"]
    if "head" in marks:
        seconds["head"] = ended - marks["head"]
    return seconds


def _joined(outside: dict[str, float], inside: dict[str, float]) -> dict[str, float]:
    """One pass of both: what neither knows of is ``other``."""
    known = {**inside}
    for stage, seconds in outside.items():
        if stage != WHOLE:
            known[stage] = known.get(stage, 0.0) + seconds
    rest = outside[WHOLE] - sum(known.values())
    return known | {"other": known.get("other", 0.0) + rest}


def _passes(events: Any, on_gpu: bool) -> list[dict[str, float]]:
    """The stages of each pass in a trace of PyTorch's."""
    cpu = [event for event in events if event.device_type.name == "CPU"]
    spans = [
        Span(
            event.name.removeprefix(MARK), event.time_range.start / 1e6, event.time_range.end / 1e6
        )
        for event in cpu
        if event.name.startswith(MARK)
    ]
    work = [
        DeviceWork(event.time_range.start / 1e6, kernel.duration / 1e6)
        for event in cpu
        for kernel in event.kernels
        if not event.name.startswith(MARK)
    ]
    found = []
    for whole in [span for span in spans if span.name == WHOLE]:
        inner = [span for span in spans if whole.start <= span.start and span.end <= whole.end]
        sent = [item for item in work if whole.start <= item.sent <= whole.end]
        found.append(device_seconds(inner, sent) if on_gpu else own_seconds(inner))
    return found


def _seconds(job: Callable[[], object]) -> float:
    """One run, which ends with a copy to the CPU and thus waits for a GPU."""
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


def _stage(name: str) -> record_function:
    return record_function(MARK + name)

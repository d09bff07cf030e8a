"""Other engines that compute a plain timm ViT on a CPU, for `benchmarks/engines.py`.

Each takes normalised float32 images of one batch size and returns logits. All have the same number
of threads, and each is set up the way that its own documentation would have it.
"""

import copy
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from server.backends import run_part

Classify = Callable[[Tensor], Tensor]

INSTALL = "pip install 'tocom-serve[engine-peers,onnx]'"


def make_peers(
    vit: nn.Module, images: Tensor, threads: int, only: Sequence[str] | None = None
) -> dict[str, Classify]:
    """Everybody who is installed, ready for this batch size; who is not is named.

    Args:
        vit: in eval mode.
        images: ``(B, 3, H, W)``, what they will get.
        threads: of each.
        only: of the others than timm; None is all.
    """
    found: dict[str, Classify] = {
        "timm": partial(run_part, classify=vit),
        "timm, channels last": _channels_last(vit),
    }
    with tempfile.TemporaryDirectory() as folder:
        makers: dict[str, Callable[[], Classify]] = {
            "torch.compile": lambda: _compiled(vit),
            "ONNX Runtime": lambda: _onnx_runtime(_exported(vit, images, folder), threads),
            "OpenVINO": lambda: _openvino(_exported(vit, images, folder), threads),
        }
        for name, make in makers.items():
            if only is not None and name not in only:
                continue
            started = time.perf_counter()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the exporters' own deprecations
                    made = make()
                    made(images)
            except ImportError as error:
                _say(f"WITHOUT {name}: {error}; {INSTALL}")
                continue
            found[name] = made
            _say(f"{name} ready for batch {len(images)} in {time.perf_counter() - started:.0f} s")
    return found


def _channels_last(vit: nn.Module) -> Classify:
    other: Any = copy.deepcopy(vit).to(memory_format=torch.channels_last)

    def classify(images: Tensor) -> Tensor:
        return run_part(images.to(memory_format=torch.channels_last), other)

    return classify


def _compiled(vit: nn.Module) -> Classify:
    return partial(run_part, classify=torch.compile(vit, dynamic=False))


def _exported(vit: nn.Module, images: Tensor, folder: str) -> Path:
    """The model as an ONNX file, written once per folder."""
    import onnxscript  # noqa: F401 - the exporter needs it, and would name it less clearly

    path = Path(folder) / "vit.onnx"
    if not path.exists():
        torch.onnx.export(vit, (images,), path, dynamo=True, verbose=False)
    return path


def _onnx_runtime(path: Path, threads: int) -> Classify:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Its threads spin while it computes, as they do by default, but not into another one's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def _openvino(path: Path, threads: int) -> Classify:
    import openvino

    hints = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.compile_model(openvino.convert_model(path), "CPU", hints)
    return lambda images: torch.from_numpy(compiled(images.numpy())[0])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

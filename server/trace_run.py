"""`tocom profile --trace FOLDER`: where the time of a forward pass goes, by stage.

It computes as the server would, with the model, bank, device, precision and backend of the
settings, but one whole batch at a time: no lanes, no CUDA graphs, no requests.
"""

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from server.engine import Engine
from server.errors import SettingsError
from server.profile_options import ProfileOptions
from server.settings import Settings
from tocom_core.compressed_vit import CompressedViT
from tocom_core.onnx_backend import unsupported_onnx
from tocom_core.stage_report import plot_stages, write_report
from tocom_core.stage_trace import trace_eager, trace_onnx
from tocom_core.stages import Breakdown

logger = logging.getLogger(__name__)

USUAL_BATCHES = (1, 8, 32)


def trace_stages(
    engine: Engine, settings: Settings, options: ProfileOptions, folder: Path
) -> list[Breakdown]:
    """Trace every degree, batch size and backend asked for, and write all of it into a folder.

    Args:
        engine: nobody else uses it meanwhile.
        settings: backend and largest batch; backend ``auto`` traces what can run here.
        options: which cells, how many runs.
        folder: is made if it is missing.

    Raises:
        SettingsError: a degree, a batch size or the backend does not fit.
    """
    model, loaded = engine.model, engine.loaded
    sizes = _sizes(options, settings.max_batch_size)
    cells = [(r, size) for size in sizes for r in _degrees(options, engine.max_r)]
    backends = _backends(model, settings.backend)
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    breakdowns = []
    for name in backends:
        trace = trace_eager if name == "eager" else trace_onnx
        for r, size in tqdm(cells, desc=name, unit="cell", leave=False):
            shape = (size, *loaded.input_size)
            images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            path = folder / f"trace-{name}-r{r}-batch{size}.json"
            breakdowns.append(trace(model, loaded.normalize, images, r, options.repeats, path))
    machine = {"model": loaded.name, "device": engine.device_identity}
    write_report(folder, breakdowns, machine)
    if importlib.util.find_spec("matplotlib") is None:
        logger.info("no picture: it needs matplotlib (pip install 'tocom-serve[plots]')")
    else:
        plot_stages(folder / "stages.png", breakdowns, loaded.name)
    return breakdowns


def written_files(folder: Path) -> str:
    """What lies in the folder, in one sentence."""
    return (
        f"{folder}: stages.md, .csv, .json and .png, and a trace per cell, for chrome://tracing or "
        "Perfetto"
    )


def _degrees(options: ProfileOptions, max_r: int) -> Sequence[int]:
    asked = options.degrees or sorted({0, max_r // 2, max_r})
    for r in asked:
        if r > max_r:
            raise SettingsError(f"--degrees {r}: this model has degrees 0 to {max_r}")
    return asked


def _sizes(options: ProfileOptions, largest: int) -> Sequence[int]:
    asked = options.batch_sizes or [size for size in USUAL_BATCHES if size <= largest]
    for size in asked:
        if size > largest:
            raise SettingsError(f"--batch-sizes {size}: --max-batch-size is {largest}")
    return asked


def _backends(model: CompressedViT, asked: str) -> list[str]:
    reason = unsupported_onnx(model)
    if asked == "onnx" and reason is not None:
        raise SettingsError(f"backend='onnx': {reason}; use backend 'eager' or 'auto'")
    if asked == "onnx":
        return ["onnx"]
    return ["eager", "onnx"] if asked == "auto" and reason is None else ["eager"]

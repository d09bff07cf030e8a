"""Does what the settings name work here? The device, the model, its bank, its profile."""

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from server.degrees import table_accuracies
from server.engine import Engine, load_engine
from server.errors import ServeError
from server.findings import Finding, Level, examine, overheard
from server.settings import Settings
from server.stored_profile import differences, find_profile
from tocom_core import bank_fit
from tocom_core.bank_fit import Serving
from tocom_core.latency_profile import LatencyProfile

TRIES = 3
MIB = 2**20
_UNFIT: Mapping[str, Level] = {"error": "problem", "warning": "warning"}
"""What is told of a bank, and how bad it is here."""
GPU_FILES = (Path("/dev/nvidia0"), Path("/proc/driver/nvidia/version"))


def device(settings: Settings) -> Iterator[Finding]:
    """What PyTorch can compute on, and whether a GPU lies idle."""
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            name = torch.cuda.get_device_name(number)
            free, total = (size // MIB for size in torch.cuda.mem_get_info(number))
            yield Finding("device", "ok", f"cuda:{number}: {name}, {free} of {total} MiB free")
        if settings.device == "cpu" and settings.devices is None:
            yield Finding(
                "device", "warning", "device=cpu, and there is a GPU", "leave --device out"
            )
        return
    if any(file.exists() for file in GPU_FILES):
        yield Finding(
            "device",
            "warning",
            "there is a GPU with a driver, but PyTorch does not see it",
            f"this is torch {torch.__version__}, built for CUDA {torch.version.cuda}: install a "
            "driver for that, and look whether CUDA_VISIBLE_DEVICES hides the GPU",
        )
    else:
        yield Finding("device", "ok", f"CPU, {torch.get_num_threads()} threads; no GPU")


def model(settings: Settings) -> Iterator[Finding]:
    """Load it all as the server would, try it, and look at bank and profile."""
    with overheard("model") as heard:
        engine = load_engine(settings)
    try:
        yield from heard
        loaded = engine.loaded
        side = "×".join(map(str, loaded.input_size[1:]))
        yield Finding(
            "model",
            "ok",
            f"{loaded.name}: {loaded.architecture}, {side} pixels, {len(loaded.labels)} classes, "
            f"r from 0 to {engine.max_r}, {engine.backend} on {engine.device_names}",
        )
        yield from examine("model", lambda: _tries(engine, settings))
        yield from examine("bank", lambda: _bank(engine, settings))
        yield from examine("profile", lambda: _profile(engine, settings))
        yield from examine("accuracy", lambda: _accuracy(engine, settings))
    finally:
        engine.close()


def _tries(engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Whether an image gets finite answers at all, and how long it takes beside the SLO."""
    width, height = engine.loaded.input_size[2], engine.loaded.input_size[1]
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    for r in sorted({0, engine.r_source, engine.max_r}):
        scores = engine.run_blocking([image], r).outputs[0]
        if isinstance(scores, ServeError):
            raise scores
        if not bool(torch.isfinite(torch.as_tensor(scores)).all()):
            yield Finding(
                "model", "problem", f"answers at r={r} are not finite", "try --dtype float32"
            )
            return
    seconds = statistics.median(engine.measure_blocking(0, 1) for _ in range(TRIES))
    told = f"one image takes {1000 * seconds:.1f} ms at r=0; the SLO is {settings.slo_ms:g} ms"
    if seconds > settings.slo_s:
        mend = "no degree will keep that under load: raise --slo-ms, or use a smaller model"
        yield Finding("speed", "problem", told, mend)
    elif seconds > settings.slo_s / 2:
        mend = "batches of one are all that fits: raise --slo-ms, or use a faster device"
        yield Finding("speed", "warning", told, mend)
    else:
        yield Finding("speed", "ok", told)


def _bank(engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Whether the bank fits; `tocom bank check --images` would also say whether it helps."""
    bank, loaded = engine.bank, engine.loaded
    if bank is None:
        yield Finding(
            "bank",
            "warning",
            "none: what merging costs in accuracy is not won back",
            "train one with 'tocom train', or name one with --bank",
        )
        return
    method = settings.method if "method" in settings.model_fields_set else None
    serving = Serving(method, settings.prop_attn, settings.scaling, settings.max_r)
    found = bank_fit.examine(loaded, bank, serving)
    for finding in found:
        if finding.severity in _UNFIT:
            told = f"{engine.bank_path}: {finding.message}"
            yield Finding("bank", _UNFIT[finding.severity], told, finding.mend)
    if not any(finding.severity in _UNFIT for finding in found):
        about = f"{bank.arch}, K={bank.num_groups}, rank {bank.rank}"
        yield Finding("bank", "ok", f"{engine.bank_path}: {about}")


def _profile(engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Whether what was measured once holds here."""
    path = find_profile(settings, engine.bank_path)
    if path is None or not path.exists():
        yield Finding(
            "profile",
            "warning",
            "none: the server has to measure degrees beside its first requests",
            "measure once: tocom profile --output profile.json …; tocom serve --profile …",
        )
        return
    known = LatencyProfile.load(path)
    if other := differences(known.model, engine.model_identity):
        yield Finding(
            "profile", "warning", f"{path} is of another model: {other}", "run 'tocom profile' anew"
        )
    elif other := differences(known.device, engine.device_identity):
        yield Finding(
            "profile",
            "warning",
            f"the latencies in {path} are another device's: {other}",
            "the server measures its own in idle time; 'tocom profile' does it at once",
        )
    else:
        yield Finding("profile", "ok", f"{path}: {len(known.measurements)} latencies hold here")


def _accuracy(engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Whether the accuracy floor leaves a degree to choose."""
    if settings.min_accuracy is None:
        return
    expected = _expected(engine, settings)
    if not expected:
        yield Finding(
            "accuracy",
            "warning",
            f"min_accuracy={settings.min_accuracy:g}, but no degree's accuracy is known",
            "run 'tocom evaluate', then 'tocom profile --evaluation'",
        )
        return
    kept = [r for r, accuracy in expected.items() if accuracy >= settings.min_accuracy]
    if kept:
        yield Finding("accuracy", "ok", f"min_accuracy leaves r up to {max(kept)}")
    else:
        best = max(expected.values())
        yield Finding(
            "accuracy",
            "problem",
            f"min_accuracy={settings.min_accuracy:g} is above every degree's ({best:.3f} at best)",
            "lower --min-accuracy",
        )


def _expected(engine: Engine, settings: Settings) -> dict[int, float]:
    """What is known of the degrees' accuracy: from the model's file, and from its profile."""
    table = table_accuracies(engine.loaded.evaluation, with_bank=engine.bank is not None)
    known = {accuracy.r: accuracy.value for accuracy in table if accuracy.r in engine.work}
    path = find_profile(settings, engine.bank_path)
    if path is not None and path.exists():
        stored = LatencyProfile.load(path)
        if not differences(stored.model, engine.model_identity):
            known |= stored.expected_accuracy()
    return known

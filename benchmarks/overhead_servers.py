"""The servers that `benchmarks/overhead.py` measures, each a process of its own.

    python benchmarks/overhead_servers.py NAME PORT [BATCH_MS]

Run as a script, so that ours can also be another checkout of this project (`PYTHONPATH`). All
answer `POST /classify`, decode with the same code (`overhead_handler`) and have a model that
answers at once; heavy imports are those of the one server that is asked for.
"""

import os
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CLASSES = 1000
SIDE = 224
PREPARED_BELOW_BYTES = 1000
"""A smaller body stands for pixels that were prepared beforehand: nothing is decoded."""


def ours(port: int, batch_ms: float) -> None:
    """The whole server as `tocom serve` runs it, around a model of 224 pixels and 1,000 classes."""
    import timm
    import torch

    from server import forward, images, intake
    from server.app import create_app
    from server.engine import Engine
    from server.serving import DrainingServer, bind
    from server.settings import Settings
    from tocom_core.models import load_model, save_model

    scores = torch.randn(CLASSES, generator=torch.Generator().manual_seed(0)).softmax(0)

    def classify(self: Any, batch: torch.Tensor, r: int, **how: Any) -> torch.Tensor:
        if batch_ms:
            time.sleep(batch_ms / 1000)  # leaves the processor to others
        return scores.expand(len(batch), -1)

    forward.Forward.classify = classify  # type: ignore[method-assign, assignment]
    decode, prepared = images.decode, torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)

    def decode_or_not(data: bytes, *how: Any) -> Any:
        return prepared if len(data) < PREPARED_BELOW_BYTES else decode(data, *how)

    setattr(intake, "decode", decode_or_not)  # noqa: B010 - it is no part of the module's interface
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "null.safetensors"
        shape = {"depth": 2, "embed_dim": 48, "num_heads": 3}
        vit = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **shape)
        save_model(path, vit, tuple(f"class {i}" for i in range(CLASSES)), model_args=shape)
        settings = Settings(
            model=str(path),
            backend="eager",
            idle_profiling=False,
            max_queue_delay_ms=0,
            slo_ms=60_000,
            shed_late=False,  # a machine that stalls for a second is no overload of this model
            port=port,
        )
        app = create_app(settings, engine=Engine(load_model(str(path)), None, settings))
    listener = bind("127.0.0.1", port)
    DrainingServer(app, settings, listener).run(sockets=[listener])


def fastapi(port: int, batch_ms: float) -> None:
    """A handler as FastAPI recommends to write it: decoding is left to its threads."""
    import uvicorn
    from fastapi import FastAPI, Request
    from starlette.concurrency import run_in_threadpool

    from benchmarks.overhead_handler import ANSWER, Decoder, needs_decoding

    app, decode = FastAPI(), Decoder()

    @app.post("/classify")
    async def classify(request: Request) -> dict[str, Any]:
        body = await request.body()
        if needs_decoding(body):
            await run_in_threadpool(decode, body)
        return ANSWER

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


def litserve(port: int, batch_ms: float, workers: int = 1) -> None:
    """LitServe; a worker decodes and computes, another process takes the requests."""
    from litserve import LitServer

    from benchmarks.overhead_litserve import NullAPI

    server = LitServer(NullAPI(api_path="/classify"), accelerator="cpu", workers_per_device=workers)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)


def litserve_on_all_cores(port: int, batch_ms: float) -> None:
    """LitServe with a worker per core."""
    litserve(port, batch_ms, os.cpu_count() or 1)


def ray_serve(port: int, batch_ms: float) -> None:
    """Ray Serve with a replica per core."""
    from benchmarks.overhead_ray import run

    run(port)


SERVERS = {
    "ours": ours,
    "FastAPI": fastapi,
    "LitServe": litserve,
    "LitServe, a worker per core": litserve_on_all_cores,
    "Ray Serve": ray_serve,
}
_MODULES = {"ours": "server", "FastAPI": "fastapi", "Ray Serve": "ray.serve"}


def missing(kind: str) -> str:
    """Why this server cannot be run here; empty if it can."""
    module = _MODULES.get(kind, "litserve")
    try:
        found = find_spec(module)
    except ModuleNotFoundError:
        found = None
    return "" if found else f"no module named {module!r}: it is part of the extra 'peers'"


if __name__ == "__main__":
    SERVERS[sys.argv[1]](int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)

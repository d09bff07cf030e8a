"""Ray Serve's side of `benchmarks/overhead.py`: a deployment with one replica per core."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any


def run(port: int) -> None:
    """Serve until SIGTERM; Ray's own processes end with it."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "240")  # a busy machine is slow
    import ray
    from ray import serve

    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    replicas = os.cpu_count() or 1
    # Replicas find this checkout as this process does.
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}}
    ray.init(
        num_cpus=replicas + 1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        runtime_env=environment,
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": port},
        logging_config={"enable_access_log": False},
    )
    deployment = serve.deployment(
        num_replicas=replicas,
        max_ongoing_requests=64,
        ray_actor_options={"num_cpus": 1},
    )(_null_deployment())
    serve.run(deployment.bind(), route_prefix="/classify")
    signal.signal(signal.SIGTERM, end)
    ended.wait()
    serve.shutdown()
    ray.shutdown()


def _null_deployment() -> Any:
    """The class of the replicas; made here, so that it travels by value."""

    class Null:
        def __init__(self) -> None:
            from benchmarks.overhead_handler import ANSWER, Decoder, needs_decoding

            self._answer, self._decode, self._needs = ANSWER, Decoder(), needs_decoding

        async def __call__(self, request: Any) -> dict[str, Any]:
            from starlette.concurrency import run_in_threadpool

            body = await request.body()
            if self._needs(body):
                await run_in_threadpool(self._decode, body)
            return self._answer

    return Null

"""`python -m deploy.ray`: the application on a Ray of its own on this machine, or on a cluster.

    python -m deploy.ray --replicas 2
    python -m deploy.ray --replicas 1 --max-replicas 4 --gpus 0.5 --model my.safetensors
    python -m deploy.ray --address auto --replicas 8        on a cluster that runs already

All flags of `tocom serve` are those of each replica; `--host` and `--port` are where Ray's proxy
listens. It ends, and with it what it started, on SIGTERM or Ctrl-C. A Ray of its own listens on
loopback only, without dashboard, and sends no usage statistics.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deploy.ray import proxy_answers
from deploy.ray.replica_settings import RAYS
from server import logs
from server.errors import SettingsError
from server.security import check_exposure
from server.serving import bind, url_of
from server.settings_sources import build_parser, load_settings

logger = logging.getLogger("server.ray")

ROOT = Path(__file__).parents[2]
APPLICATION = "tocom"
STARTS = 4
"""Ray is started so often at most."""
REQUEST_TIMEOUT_S = 60.0
"""A request that finds no replica waits for one, so long at most."""


def main(argv: Sequence[str]) -> int:
    """Run the application until told to stop; returns the exit code."""
    logs.configure("auto", "info")
    try:
        options, given = parse(argv)
        settings = load_settings([f"--{k.replace('_', '-')}={v}" for k, v in given.items()])
        logs.configure(settings.log_format, settings.log_level)
        listener = bind(settings.host, settings.port)
        check_exposure(settings, listener.getsockname()[0])
        url, port = url_of(listener), listener.getsockname()[1]
        listener.close()  # the proxy, another process, opens it
        arguments = {
            **options,
            "settings": {name: value for name, value in given.items() if name not in RAYS},
        }
        address = arguments.pop("address")
        return _run(arguments, address, settings.host, port, url)
    except (SettingsError, OSError) as error:
        logger.error("%s", error)
        return 2


def parse(argv: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Split the command line into what is Ray's and the settings of the server.

    Raises:
        SettingsError: a flag is unknown, or has a wrong value.
    """
    parser = argparse.ArgumentParser(
        prog="python -m deploy.ray",
        description="Serve with several replicas on Ray.",
        epilog="All flags of 'tocom serve' are taken too, for each replica.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--replicas", type=int, help="replicas, at least [1]")
    parser.add_argument("--max-replicas", type=int, help="replicas at most, by load [= --replicas]")
    parser.add_argument("--cpus", type=float, help="cores of one replica [1]")
    parser.add_argument("--gpus", type=float, help="GPUs of one replica, 0.5: two share one [0]")
    parser.add_argument("--target-demand", type=float, help="load that each should have [0.8]")
    parser.add_argument(
        "--address", default=None, help="a Ray cluster that runs already, or 'auto' [its own]"
    )
    known, rest = parser.parse_known_args(argv)
    load_settings(rest)  # says what is wrong with a flag that neither knows
    return vars(known), vars(build_parser().parse_args(rest))


def _run(arguments: dict[str, Any], address: str | None, host: str, port: int, url: str) -> int:
    prepare_environment(os.environ)
    if address is None:
        # Ray's name for "no other machines": all of its ports, of which some run whatever they are
        # sent, are on loopback then. On Linux they would be open to the network.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray
    from ray import serve

    from deploy.ray.application import QUIET, FleetArguments, build

    try:
        checked = FleetArguments(**arguments)
    except ValidationError as error:
        said = "; ".join(f"{item['loc'] or ''} {item['msg']}".strip() for item in error.errors())
        raise SettingsError(said) from None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # until it is ready
    if address is None:
        _start_ray(ray)
    else:
        paths = {"PYTHONPATH": os.environ["PYTHONPATH"]}
        ray.init(address=address, runtime_env={"env_vars": paths}, logging_level="warning")
    try:
        serve.start(
            proxy_location="HeadOnly" if address is None else "EveryNode",
            http_options={"host": host, "port": port, "request_timeout_s": REQUEST_TIMEOUT_S},
            logging_config=QUIET,
        )
        serve.run(build(checked), name=APPLICATION)
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        logger.info(
            "ready: url=%s replicas=%d; try: curl -F file=@photo.jpg %s/classify",
            *(url, checked.replicas, url),
        )
        ended.wait()
        logger.info("draining")
    finally:
        if address is None:
            serve.shutdown()
        else:
            serve.delete(APPLICATION)
        ray.shutdown()
    return 0


def _start_ray(ray: Any) -> None:
    """Start a Ray of this process's own.

    On a busy machine one of its parts may miss the 15 s that another one gives it, which ends that
    one for good; starting anew helps, with what is in memory by then.
    """
    for left in reversed(range(STARTS)):
        try:
            ray.init(include_dashboard=False, logging_level="warning")
        except Exception as error:  # Ray raises plain ones
            if not left:
                raise OSError(f"Ray did not start: {error}") from error
            logger.warning("Ray did not start, trying again: %s", error)
        else:
            return


def prepare_environment(environment: Any) -> None:
    """Set what Ray's processes inherit: where this checkout is, and what the proxy answers.

    Args:
        environment: changed in place, like `os.environ`.
    """
    paths = [str(ROOT), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    environment.setdefault(proxy_answers.VARIABLE, proxy_answers.CALLBACK)
    environment.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    environment.setdefault("RAY_raylet_start_wait_time_s", "60")  # a busy machine is slow
    environment.setdefault("RAY_agent_register_timeout_ms", "240000")
    environment.setdefault("OMP_WAIT_POLICY", "passive")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""``tocom serve``: the application as a process, from taking its port to a drained exit."""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI

from server.clock import monotonic
from server.connections import Connections, allow_open_files
from server.security import HEADERS, check_exposure
from server.settings import Settings
from server.settings_sources import load_settings

if TYPE_CHECKING:
    from server.service import Service

logger = logging.getLogger(__name__)

_OWN_LOGGERS = ("server", "tocom_core")

KEEP_ALIVE_S = 75
"""Idle connections stay open longer than the clients and proxies before us keep theirs."""

_MIN_CLOSE_S = 1.0
"""Answers get at least this long to leave after the drain."""


def main(argv: Sequence[str]) -> int:
    """Serve until told to stop; returns the exit code.

    Raises:
        SettingsError: the configuration is wrong.
        TocomError: the model or bank cannot be loaded.
        OSError: the address cannot be listened on.
    """
    _log_to_stderr()
    settings = load_settings(argv)
    _set_level(settings.log_level)
    # Until the server has its own handlers there is nothing to drain.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    listener = bind(settings.host, settings.port)
    check_exposure(settings, listener.getsockname()[0])
    allow_open_files(settings.max_connections)
    logger.info("loading: model=%s bank=%s", settings.model, settings.bank)
    # Threads of the model that wait for each other leave their core to the decoders instead of
    # spinning.  Must be set before PyTorch is loaded; on two cores it gave 4 to 12 % more images/s.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from server.app import create_app  # takes seconds; wrong settings are told before

    server = DrainingServer(create_app(settings), settings, listener)
    server.run(sockets=[listener])
    logger.info("stopped: exit_code=%d", server.exit_code)
    if _busy_threads():
        # A forward pass or a decoder that hangs must not keep the process: Python would join it.
        logging.shutdown()
        os._exit(server.exit_code)
    return server.exit_code


def bind(host: str, port: int) -> socket.socket:
    """Take the address before the model is loaded, so that a taken port is noticed at once.

    Raises:
        OSError: it is taken, not ours, or does not exist; the message says what to do.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OSError(f"cannot listen on host={host!r}: {error.strerror}; choose another") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another address with --host "
            "and --port, or --port 0 for any free one"
        ) from None
    return listener


class DrainingServer(uvicorn.Server):
    """uvicorn that goes on answering while it drains.

    On the first SIGTERM or SIGINT the service is drained with the port still open, so that
    ``/readyz`` says 503 and late requests get an answer; then uvicorn shuts down.  A second signal
    gives up what is left.  Unlike uvicorn's own, the process then ends with a plain exit code.
    """

    def __init__(self, app: FastAPI, settings: Settings, listener: socket.socket) -> None:
        service: Service = app.state.service
        connections = Connections(
            settings, settings.max_body_bytes, on_refusal=service.metrics.observe_refusal
        )
        super().__init__(
            uvicorn.Config(
                app,
                http=connections.protocol,
                ws="none",
                proxy_headers=False,  # whose request it is, `client_address` finds out
                headers=list(HEADERS),
                log_config=None,
                access_log=settings.log_level == "debug",
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, int(settings.drain_timeout_s)),
            )
        )
        self.exit_code = 0
        self._app = app
        self._service = service
        self._settings = settings
        self._url = url_of(listener)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Run until drained."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port, then wait for the warm-up in the background."""
        await super().startup(sockets)
        if self._loop is not None and self._settings.api_keys_file is not None:
            self._loop.add_signal_handler(signal.SIGHUP, self._app.state.guard.reload_keys)
        self._spawn(self._announce())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain.  Second: stop at once."""
        if self._stopping or self._loop is None:
            self.exit_code = 1
            self.should_exit = self.force_exit = True
            return
        self._stopping = True
        self._loop.call_soon_threadsafe(self._begin_drain, signal.Signals(sig).name)

    def _begin_drain(self, signal_name: str) -> None:
        logger.info("draining: signal=%s in_flight=%d", signal_name, self._service.in_flight)
        self._spawn(self._drain())

    async def _drain(self) -> None:
        deadline = monotonic() + self._settings.drain_timeout_s
        finished = await self._service.drain()
        if not finished:
            logger.warning(
                "drain_timeout_s=%g passed; the rest was given up", self._settings.drain_timeout_s
            )
        self.config.timeout_graceful_shutdown = max(_MIN_CLOSE_S, deadline - monotonic())  # type: ignore[assignment]
        self.should_exit = True

    async def _announce(self) -> None:
        """Say that the server is ready, or end it if it cannot be."""
        try:
            warm_up = await self._app.state.starting
        except asyncio.CancelledError:
            raise
        except Exception:  # logged where the task was started
            self.exit_code = 1
            self.should_exit = True
            return
        # Some 400,000 objects of the start-up live as long as the process. A full collection looks
        # through all of them, which stops the world for a third of a second.
        gc.collect()
        gc.freeze()
        engine = self._service.engine
        logger.info(
            "ready: url=%s model=%s device=%s dtype=%s r_source=%d K=%s max_r=%d warm_up_s=%.1f; "
            "try: curl -F file=@photo.jpg %s/classify",
            self._url,
            engine.loaded.name,
            engine.device_names,
            self._settings.dtype,
            engine.r_source,
            engine.bank.num_groups if engine.bank else "none",
            engine.max_r,
            warm_up.seconds,
            self._url,
        )

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def url_of(listener: socket.socket) -> str:
    """Where a client on this machine finds the server; the real port if 0 was asked for."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _log_to_stderr() -> None:
    """Log our own start-up; libraries only speak up when something is wrong."""
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        level=logging.WARNING,
        stream=sys.stderr,
    )
    logging.captureWarnings(True)
    # It complains of each form that a stranger builds badly, and the stranger is told anyway.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    _set_level("info")


def _set_level(level: str) -> None:
    for name in _OWN_LOGGERS:
        logging.getLogger(name).setLevel(level.upper())
    if level == "debug":
        logging.getLogger("uvicorn").setLevel(logging.INFO)


def _busy_threads() -> bool:
    return any(
        thread.name.startswith(("inference", "decode")) and thread.is_alive()
        for thread in threading.enumerate()
    )

"""``tocom serve``: the application as a process, from taking its port to a drained exit."""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI

from server import logs
from server.clock import monotonic
from server.connections import Connections, allow_open_files
from server.device_loss import EXIT_CODE, end_within
from server.errors import ServeError, SettingsError
from server.reload_schemas import ReloadRequest
from server.request_log import RequestLog
from server.security import HEADERS, check_exposure
from server.settings import Settings
from server.settings_sources import load_settings
from tocom_core import __version__

if TYPE_CHECKING:
    from server.service import Service
    from server.telemetry import Telemetry

logger = logging.getLogger(__name__)

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
    logs.configure("auto", "info")
    settings = load_settings(argv)
    log_format = logs.configure(settings.log_format, settings.log_level)
    # Until the server has its own handlers there is nothing to drain, nor to reload.
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    listener = bind(settings.host, settings.port)
    check_exposure(settings, listener.getsockname()[0])
    allow_open_files(settings.max_connections)
    logger.info("loading: model=%s bank=%s", settings.model, settings.bank)
    # Threads of the model that wait for each other leave their core to the decoders instead of
    # spinning.  Must be set before PyTorch is loaded; on two cores it gave 4 to 12 % more images/s.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from server.app import create_app  # takes seconds; wrong settings are told before

    app = create_app(settings)
    with observed(app.state.service, settings, log_format):
        server = DrainingServer(app, settings, listener)
        server.run(sockets=[listener])
    logger.info("stopped: exit_code=%d", server.exit_code)
    if server.exit_code == EXIT_CODE or _busy_threads():
        # A forward pass or a decoder that hangs must not keep the process: Python would join it.
        # And who lost the device may hang in its driver at any call.
        logging.shutdown()
        os._exit(server.exit_code)
    return server.exit_code


@contextmanager
def observed(service: "Service", settings: Settings, log_format: str) -> Iterator[None]:
    """Log and trace what the service does, as the settings want it.

    Raises:
        SettingsError: traces are wanted, and OpenTelemetry is not installed.
    """
    level = logging.getLevelName(settings.log_level.upper())
    log = RequestLog(sys.stderr, log_format, level, settings.log_share)
    service.on_finished.append(log)
    telemetry = _telemetry(settings)
    if telemetry is not None:
        service.on_finished.append(telemetry.on_request)
        service.on_batch.append(telemetry.on_batch)
    try:
        yield
    finally:
        log.flush()
        if telemetry is not None:
            telemetry.close()


def _telemetry(settings: Settings) -> "Telemetry | None":
    if settings.traces == "none":
        return None
    try:
        from server.telemetry import Telemetry
    except ImportError as error:
        raise SettingsError(
            f"traces={settings.traces!r}: {error}; pip install 'tocom-serve[otel]', or leave it out"
        ) from error
    return Telemetry(__version__)


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
                access_log=False,  # there is a request log
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
        # It is not everywhere, and only the main thread may have it.
        with suppress(AttributeError, ValueError, RuntimeError):
            self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            await super().serve(sockets)
        finally:
            gc.unfreeze()  # what nobody frees at the end, some libraries report as leaked

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port, then wait for the warm-up in the background."""
        await super().startup(sockets)
        self._spawn(self._announce())
        self._spawn(self._watch_device())

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

    def _reload(self) -> None:
        """SIGHUP: all files anew, the keys and what `POST /models/reload` reads without a body."""
        if self._settings.api_keys_file is not None:
            self._app.state.guard.reload_keys()
        try:
            self._service.check_open()
            self._service.reloads.start(ReloadRequest())
        except ServeError as error:
            logger.warning("SIGHUP: no reload: %s", error.detail)

    async def _watch_device(self) -> None:
        """End the process once its device is lost, with what it held answered."""
        await self._service.lost.wait()
        self.exit_code = EXIT_CODE
        end_within()
        await asyncio.sleep(0)  # who was waiting hears of it first
        self._stopping = True
        self.config.timeout_graceful_shutdown = int(_MIN_CLOSE_S)
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


def _busy_threads() -> bool:
    return any(
        thread.name.startswith(("inference", "decode", "reload")) and thread.is_alive()
        for thread in threading.enumerate()
    )

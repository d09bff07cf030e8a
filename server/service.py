"""One model being served: its parts wired together, and their life from warm-up to drain."""

import asyncio
import logging
import time
from collections.abc import Callable
from random import Random
from typing import TypeVar

from PIL import Image

from server.clock import Clock, monotonic
from server.core import Core, build_core
from server.engine import Engine, WarmUp
from server.errors import DeviceLost, Draining, NotReady, SettingsError
from server.feed import Feed
from server.gpu_reading import gpu_reader
from server.history import History, Snapshot
from server.incoming import Destination, Form, Incoming, Part
from server.intake import Answer, Intake
from server.metrics import Metrics
from server.reload import Candidate, Reloads
from server.reload_schemas import ReloadStage
from server.request_record import Finished
from server.settings import Settings
from server.stats import BatchStats, LoadSnapshot, RequestStats, notify
from server.stored_profile import StoredProfile, open_profile

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_AT_LOAD_EVERY_S = 0.25
DRAIN_GRACE_S = 1.0
"""How long bodies that are arriving when the drain begins may take to be admitted still."""

_BANK_LABELS = ("digest", "arch", "num_groups", "rank")


class Service:
    """Engine, queue, controller and metrics of one server.

    Args:
        engine: the model.
        settings: limits, policy, timeouts.
        version: of the server, for the metrics.
        clock: monotonic seconds, the same as the event loop's.

    Raises:
        SettingsError: the settings do not fit the model.

    Attributes:
        engine: the model that is served.
        draining: no new requests are taken.
        in_flight: classification requests being handled.
        reloads: changes the model.
        lost: set when the device cannot be used any more.
        on_finished: observers of each HTTP request.
        on_batch: observers of each batch, beside the metrics.
        history: the last minutes.
        feed: tells of them as they go on.
    """

    def __init__(
        self, engine: Engine, settings: Settings, version: str, clock: Clock = monotonic
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.draining = False
        self.in_flight = 0
        self.metrics = Metrics(settings.slo_s)
        self.lost = asyncio.Event()
        self.on_finished: list[Finished] = []
        self.on_batch: list[Callable[[BatchStats], None]] = []
        self._version = version
        self._clock = clock
        self._core: Core | None = None
        self.history = History(clock, time.time, Random())
        self.feed = Feed(self._sample)
        self._tasks: list[asyncio.Task[None]] = []
        self._intake = Intake(settings, clock, self._observe_image)
        self.reloads = Reloads(
            settings,
            clock,
            present=lambda: self.core,
            wire=self._wire_beside,
            swap=self._swap,
            on_end=self.metrics.observe_reload,
        )
        _check_degrees(engine, settings)
        self._stored = open_profile(settings, engine)
        self._describe()
        self._watch()

    @property
    def core(self) -> Core:
        """Batcher and controller.

        Raises:
            NotReady: the model is still warming up.
        """
        if self._core is None:
            raise NotReady
        return self._core

    def capacity_demand(self) -> float | None:
        """Return how many replicas like this one the offered load needs; None before warm-up.

        It is worked out anew at each call, and may be asked while the server drains: what is
        offered no more is out of it after `server.capacity_demand.WINDOW_S`.
        """
        return None if self._core is None else self._core.demand.value()

    def check_ready(self) -> None:
        """Raise the reason why requests should go elsewhere, if there is one."""
        self.check_open()
        if not self.core.batcher.alive:
            raise NotReady("Inference has stopped on this server; it must be restarted.")
        if not self.engine.healthy:
            raise NotReady("The last batches failed one after the other; see the server's log.")

    async def start(self) -> WarmUp:
        """Warm the model up and open the queue.

        Raises:
            SettingsError: the settings do not fit the model.
            ForwardFailed: the model does not run.
        """
        self._tasks.append(asyncio.create_task(self.feed.run()))
        warm_up = await self.engine.warm_up(measured=bool(self._stored.measurements))
        core = self._build_core(self.engine, self.settings, self._stored, warm_up)
        core.batcher.start()
        self._tasks.append(asyncio.create_task(self._look_at_load()))
        self._core = core
        return warm_up

    async def classify(
        self, incoming: Incoming, form: Form[Part]
    ) -> tuple[Destination, list[Answer]]:
        """One request, from its first byte to one answer per file, and the model that gave them.

        Raises:
            ServeError: the request as a whole was refused.
            ClientGone: nobody is waiting for the answer any more.
        """
        self.check_open()
        core = self.core  # so that nobody sends a body to a server that is not ready
        self.in_flight += 1
        try:
            return await self._intake.classify(
                lambda: (self._core or core).destination, incoming, form
            )
        finally:
            self.in_flight -= 1

    async def prepare(
        self, incoming: Incoming, transform: Callable[[Image.Image], T], input_side: int
    ) -> T:
        """Read and decode the one image of a request that does not join the queue.

        Raises:
            ServeError: the request was refused.
            ClientGone: nobody is waiting for the answer any more.
        """
        self.check_open()
        return await self._intake.prepare(incoming, transform, input_side)

    async def drain(self) -> bool:
        """Refuse new requests and finish the admitted ones.

        Returns:
            whether they were finished within ``drain_timeout_s``; the others got ``Draining``.
        """
        if self.draining:
            return True
        self.draining = True
        self.feed.close()
        deadline = self._clock() + self.settings.drain_timeout_s
        await self._intake.settle(min(DRAIN_GRACE_S, self.settings.drain_timeout_s / 2))
        if self._core is None:
            return True
        left_s = max(0.0, deadline - self._clock())
        self._core.merge_view.close()
        before = asyncio.create_task(self.reloads.drain(left_s))
        finished = await self._core.batcher.drain(left_s)
        return await before and finished

    async def stop(self) -> None:
        """End all tasks and threads; admitted work should have been drained before."""
        self.draining = True
        self.feed.close()
        for task in self._tasks:
            task.cancel()
        await self.reloads.stop()
        if self._core is not None:
            await self._core.batcher.close()
        self._intake.close()
        self.engine.close()

    def device_lost(self) -> None:
        """Take no more requests, and answer those that are here: nothing can be computed."""
        if self.lost.is_set():
            return
        logger.critical("the device is lost; this process has to be started anew")
        self.lost.set()
        self._tasks.append(asyncio.get_running_loop().create_task(self._give_up()))

    async def _give_up(self) -> None:
        await self.core.batcher.close(DeviceLost())
        await self._intake.settle(0)

    def check_open(self) -> None:
        """Raise the reason why no more requests are taken, if there is one."""
        if self.draining:
            raise Draining
        if self.lost.is_set():
            raise DeviceLost

    def _build_core(
        self,
        engine: Engine,
        settings: Settings,
        stored: StoredProfile,
        warm_up: WarmUp,
        before: Core | None = None,
    ) -> Core:
        return build_core(
            *(engine, settings, stored, warm_up, self.metrics, self.history, self._clock),
            on_batch=self.on_batch,
            on_lost=self.device_lost,
            before=before,
        )

    async def _wire_beside(
        self,
        engine: Engine,
        settings: Settings,
        before: Core,
        on_stage: Callable[[ReloadStage], None],
    ) -> Core:
        """Warm another model up and wire what it needs, while the present one serves."""
        _check_degrees(engine, settings)
        stored = open_profile(settings, engine)
        on_stage("warming_up")
        warm_up = await engine.warm_up(measured=bool(stored.measurements))
        return self._build_core(engine, settings, stored, warm_up, before)

    def _swap(self, candidate: Candidate) -> None:
        """Serve another model from now on."""
        self.check_open()
        candidate.core.batcher.start()
        self.engine, self._core = candidate.engine, candidate.core
        self._describe()

    async def _look_at_load(self) -> None:
        """Let the degree come back down when there are no batches that would ask for it."""
        while True:
            await asyncio.sleep(LOOK_AT_LOAD_EVERY_S)
            try:
                self.core.look()
            except Exception:  # the next look may go well, and there must be one
                logger.exception("looking at the load failed")

    def _observe_image(self, stats: RequestStats) -> None:
        notify([self.metrics.observe_image, self.history.observe_image], stats)

    def _sample(self) -> Snapshot:
        """Keep what is happening now in the history."""
        core = self._core
        return self.history.sample(
            LoadSnapshot(self._clock()) if core is None else core.batcher.load(),
            None if core is None else core.controller.status(),
            r_source=self.engine.r_source,
            ready=self._is_ready(),
            draining=self.draining,
        )

    def _describe(self) -> None:
        """Tell the metrics what is served."""
        engine, bank = self.engine, self.engine.bank
        model = {
            "name": engine.loaded.name,
            "architecture": engine.loaded.architecture,
            "digest": engine.loaded.digest,
            "device": engine.device_names,
            "dtype": self.settings.dtype,
            "method": engine.model.method,
            "r_source": str(engine.r_source),
        }
        labels = {}
        if bank is not None:
            labels = {name: str(getattr(bank, name)) for name in _BANK_LABELS}
            labels["scaling"] = str(engine.scaling)
        self.metrics.describe(self._version, model, labels)

    def _watch(self) -> None:
        """Tell the metrics where to look."""
        self.metrics.watch(
            queue_depth=lambda: self._core.batcher.load().queue_length if self._core else 0,
            in_flight=lambda: self.in_flight,
            r=lambda: self._core.controller.status().r if self._core else self.engine.r_source,
            mode=lambda: self._core.controller.status().mode if self._core else "auto",
            ready=self._is_ready,
        )
        self.metrics.watch_queue(
            admitted=lambda: self._core.batcher.load().admitted if self._core else 0,
            capacity=self.settings.queue_size,
        )
        self.metrics.watch_gpus(gpu_reader(self.engine.devices))
        self.metrics.watch_control(
            state=lambda: self._core.controller.status() if self._core else None,
            arrival_rate=lambda: self._core.batcher.load().steady_rate if self._core else 0.0,
            profile_cells=lambda: self._core.profile_cells() if self._core else (0, 0),
            capacity_demand=self.capacity_demand,
        )

    def _is_ready(self) -> bool:
        try:
            self.check_ready()
        except (DeviceLost, Draining, NotReady):
            return False
        return True


def _check_degrees(engine: Engine, settings: Settings) -> None:
    for name, r in (("static_r", settings.static_r), ("steady_r", settings.steady_r)):
        if r is not None and r > engine.max_r:
            raise SettingsError(f"{name}={r}: the model has degrees 0 to {engine.max_r}")

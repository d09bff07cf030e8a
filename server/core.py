"""What exists once the model is warm: table, controller, scheduler, batcher and idle work, wired.

The parts know nothing of each other beyond what they are given here; the simulator wires the same
ones around a simulated machine.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from server.agreement import Agreement, LiveAccuracy
from server.batcher import Batcher
from server.capacity_demand import CapacityDemand, OfferedLoad
from server.clock import Clock
from server.controller import Controller
from server.degrees import most_telling_first
from server.device_loss import telling
from server.engine import Engine, WarmUp
from server.entries import Entry
from server.errors import BadParameter, SettingsError
from server.grid import GridMeasurement
from server.history import History
from server.idle import IdleShift, IdleWork
from server.incoming import Destination
from server.memory_return import MemoryReturn
from server.merge_view import MergeView
from server.metrics import Metrics
from server.operating_table import OperatingTable
from server.pixel_input import PixelFormat
from server.policies import build_policy
from server.resizing import faster
from server.scheduler import Scheduler
from server.settings import Settings
from server.shadow import ShadowRunner
from server.stats import BatchStats, notify
from server.stored_profile import StoredProfile
from server.succession import room_after

IDLE_SHARE_OF_SLO = 0.25
"""A request may come in the middle of a step of idle work: so long it may wait for it."""
RECENT_IMAGES = 32
"""So many served images are kept, to try another model with."""
DELAY_SHARE_OF_SLO = 0.1
"""An idle engine waits no longer than this for a fuller batch, whatever the setting."""


@dataclass(frozen=True)
class Core:
    """The parts of a warm server.

    Attributes:
        engine: the model.
        destination: where requests for it go.
        recent: images that were served last, as the model got them.
        offered: what came in of late, for whichever model was served.
        demand: how many such servers that needs.
        over: set when the model is served no more and its last batch has ended.
        live: corrects the expected accuracy; None unless asked for.
        grid: measures what is not measured yet; None unless asked for.
        merge_view: shows what merges in an image.
    """

    engine: Engine
    batcher: Batcher
    controller: Controller
    scheduler: Scheduler[Entry]
    destination: Destination
    recent: deque[Any]
    offered: OfferedLoad
    demand: CapacityDemand
    over: asyncio.Event
    live: LiveAccuracy | None
    grid: GridMeasurement | None
    merge_view: MergeView

    def look(self) -> None:
        """Let the degree come back down when there are no batches that would ask for it."""
        self.controller.decide(self.batcher.load())
        if self.live is not None:
            self.live.refresh()

    def profile_cells(self) -> tuple[int, int]:
        """Return how many cells of the latency grid are measured and how many are missing."""
        if self.grid is None:
            return len(self.controller.table.measured_cells), 0
        return self.grid.measured, self.grid.total - self.grid.measured


def build_core(
    engine: Engine,
    settings: Settings,
    stored: StoredProfile,
    warm_up: WarmUp,
    metrics: Metrics,
    history: History,
    clock: Clock,
    *,
    on_batch: Sequence[Callable[[BatchStats], None]] = (),
    on_lost: Callable[[], None] = lambda: None,
    before: Core | None = None,
) -> Core:
    """Wire the parts around a warm engine.

    Args:
        engine: the model.
        settings: limits, policy, bounds.
        stored: what was measured of it earlier.
        warm_up: what was measured of it now.
        metrics: observes all of it.
        history: likewise.
        clock: seconds, the event loop's.
        on_batch: further observers of each batch; looked at each time.
        on_lost: called when the device is lost.
        before: the core whose place it takes; the first batch waits until that one is `over`.

    Raises:
        SettingsError: bounds and accuracy floor leave no degree, or the static degree is none.
    """
    profile = stored.complete(engine.own_profile(stored.measurements or warm_up.measurements))
    table = OperatingTable(profile, devices=len(engine.devices), max_batch_s=settings.max_batch_s)
    agreement = Agreement(clock)
    controller = _controller(engine, settings, table, agreement, metrics, clock)
    live = None
    if settings.live_accuracy:
        evaluated = profile.expected_accuracy()
        live = LiveAccuracy(agreement, evaluated, engine.r_source, table.set_accuracy)
    run = telling(on_lost, engine.run)
    shadow = ShadowRunner(
        run,
        engine.r_source,
        share=settings.live_share,
        random=random.Random(),
        fits=lambda: table.batch_s(engine.r_source, 1) <= IDLE_SHARE_OF_SLO * settings.slo_s,
        on_comparison=[agreement.add, metrics.observe_comparison]
        + ([] if live is None else [lambda _: live.refresh()]),
    )
    grid = None
    if settings.idle_profiling:
        grid = GridMeasurement(
            telling(on_lost, engine.measure),
            table,
            most_telling_first(engine.max_r),
            clock,
            max_batch_size=settings.max_batch_size,
            budget_s=IDLE_SHARE_OF_SLO * settings.slo_s,
            known=profile.measurements,
            on_complete=lambda: stored.save(table.to_profile()),
        )
    view = MergeView(telling(on_lost, engine.merge_map))
    works: list[IdleWork] = [view, shadow] if grid is None else [view, shadow, grid]
    scheduler: Scheduler[Entry] = Scheduler(
        controller,
        max_batch_size=settings.max_batch_size,
        queue_size=settings.queue_size,
        slo_s=settings.slo_s,
        shed_late=settings.shed_late,
    )
    recent: deque[Any] = deque(maxlen=RECENT_IMAGES)
    offered = OfferedLoad() if before is None else before.offered
    demand = CapacityDemand(offered, controller.status, settings.steady_r, clock)

    def on_served(payload: Any, output: Any, r: int) -> None:
        recent.append(payload)
        shadow.offer(payload, int(np.argmax(output)), r)

    batcher = Batcher(
        run,
        scheduler,
        clock,
        max_batch_size=settings.max_batch_size,
        max_queue_delay_s=min(settings.max_queue_delay_s, DELAY_SHARE_OF_SLO * settings.slo_s),
        queue_size=settings.queue_size,
        room=engine.room if before is None else room_after(before.over, engine.room),
        on_batch=[
            controller.observe_batch,
            metrics.observe_batch,
            history.observe_batch,
            lambda stats: notify(on_batch, stats),
        ],
        on_request=[metrics.observe_image, history.observe_image],
        on_served=on_served,
        on_offered=offered.add,
        idle_work=IdleShift(works, last=MemoryReturn.of_this_process(clock)),
    )
    loaded, over = engine.loaded, asyncio.Event()
    _, height, width = loaded.input_size
    pixels = PixelFormat(height, width, loaded.mean, loaded.std, torch.from_numpy)
    destination = Destination(
        *(loaded.name, loaded.labels, batcher, faster(loaded.transform), max(height, width)),
        pixels=pixels,
    )
    return Core(
        *(engine, batcher, controller, scheduler, destination, recent, offered, demand, over),
        live=live,
        grid=grid,
        merge_view=view,
    )


def _controller(
    engine: Engine,
    settings: Settings,
    table: OperatingTable,
    agreement: Agreement,
    metrics: Metrics,
    clock: Clock,
) -> Controller:
    static_r = engine.r_source if settings.static_r is None else settings.static_r
    policy = build_policy(
        settings.policy, static_r=static_r, dwell_s=settings.dwell_s, slo_s=settings.slo_s
    )
    try:
        return Controller(
            policy,
            table,
            engine.r_source,
            clock,
            slo_s=settings.slo_s,
            mode=settings.mode,
            max_r=settings.max_r,
            min_accuracy=settings.min_accuracy,
            agreement=agreement,
            on_switch=[metrics.observe_switch],
        )
    except BadParameter as error:
        raise SettingsError(error.detail) from error

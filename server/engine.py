"""The model on all of its devices, behind one queue.

Each device has a replica of its own: its weights, its degree, its threads (`replica`). A batch goes
to the device with the least work, and none is begun while no device has room. Callers hand over
decoded images and a degree and await the outcome; what cannot be computed fails its own batch only.
"""

import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from server.clock import Clock, monotonic
from server.degrees import (
    device_identity,
    highest_degree,
    model_identity,
    relative_work,
    table_accuracies,
)
from server.devices import choose_places
from server.errors import SettingsError
from server.model_parts import load_parts
from server.profiled_backend import asked_backend
from server.replica import Replica
from server.room import SomeRoom
from server.settings import Settings
from server.stats import BatchOutcome
from tocom_core.bank import Bank
from tocom_core.compressed_vit import CompressedViT
from tocom_core.latency_profile import LatencyProfile, Measurement
from tocom_core.models import LoadedModel
from tocom_core.visualisation import MergeMap

logger = logging.getLogger(__name__)

_WARM_UP_BATCH = 8
_WARM_UP_RUNS = 2


@dataclass(frozen=True)
class WarmUp:
    """What the warm-up learned.

    Attributes:
        measurements: of two batches, as different as can be; none where they were known before.
        seconds: how long it took.
    """

    measurements: tuple[Measurement, ...]
    seconds: float


class Engine:
    """Runs batches of one model at any of its degrees.

    Args:
        loaded: the model; its weights are moved to the device and from then on belong to the
            engine.
        bank: the compensator; None merges tokens without compensation.
        settings: device, dtype, threads, lanes, method.
        clock: measures merging and computing.
        bank_path: where the bank lies, if it comes from a file.

    Raises:
        SettingsError: the settings do not fit this machine or model.
        TocomError: the bank does not fit, or the method does not cover the model.

    Attributes:
        max_r: the highest degree.
        precision: what it computes with, by the name that the setting has for it.
        backend: what computes batches, by the name that the setting has for it.
        lanes: between how many a batch is shared out.
        work: degree to its multiply-adds relative to those of r=0, for all degrees.
        device_identity: the device and what else decides how fast the model runs on it.
        model_identity: the model and what else decides how accurate it is.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        bank: Bank | None,
        settings: Settings,
        clock: Clock = monotonic,
        *,
        bank_path: Path | None = None,
    ) -> None:
        self.loaded = loaded
        self.bank = bank
        self.bank_path = bank_path
        self.r_source = loaded.r_source
        places = choose_places(settings)
        model = _compressed(loaded, bank, settings)
        self.model_identity = model_identity(loaded, bank, model, settings.scaling)
        self.max_r = highest_degree(model, bank, self.r_source, settings.max_r)
        self.work = relative_work(model, self.max_r)
        if bank is None:
            logger.info("no bank: tokens are %sd without compensation", model.method)
        where = places[0].device, places[0].threads, bank_path
        asked = asked_backend(settings, *where, model, self.model_identity)
        models = [model, *(deepcopy(model) for _ in places[1:])]
        self._replicas: list[Replica] = []
        for number, (copy, place) in enumerate(zip(models, places, strict=True)):
            backend = self._replicas[0].backend if number else asked
            given = copy, loaded, bank, settings, backend, place, self.max_r, clock
            self._replicas.append(Replica(*given, number=number))
        first = self._replicas[0]
        self.model = first.model
        self.precision = settings.dtype
        self.backend = first.backend
        self.lanes = first.lanes.count
        self.devices = tuple(place.device for place in places)
        self.device_identity = device_identity(
            first.device, settings.dtype, first.threads, first.lanes.count, first.backend
        )
        self._room = SomeRoom([replica.room for replica in self._replicas])
        self._max_batch_size = settings.max_batch_size
        self._clock = clock
        self._samples: list[Tensor] = []

    @property
    def healthy(self) -> bool:
        """False after several failed batches in a row on one device, until one succeeds there."""
        return all(replica.healthy for replica in self._replicas)

    @property
    def device_names(self) -> str:
        """All devices, in words."""
        return ", ".join(map(str, self.devices))

    @property
    def labels(self) -> tuple[str, ...]:
        """One name per class."""
        return self.loaded.labels

    @property
    def scaling(self) -> float | None:
        """The factor on the bank's deltas; None without a bank."""
        factor: float | None = self.model_identity["scaling"]
        return factor

    def own_profile(self, measurements: Sequence[Measurement]) -> LatencyProfile:
        """What is known without a stored profile: measurements, and what the model's file tells.

        Accuracies are those of the checkpoint's own evaluation table, for the way it is served.

        Raises:
            ProfileError: too few measurements.
        """
        known = table_accuracies(self.loaded.evaluation, with_bank=self.bank is not None)
        return LatencyProfile(
            device=self.device_identity,
            model=self.model_identity,
            work=self.work,
            measurements=measurements,
            accuracies=[accuracy for accuracy in known if accuracy.r in self.work],
            max_batch_size=self._max_batch_size,
        )

    async def run(self, images: Sequence[Tensor], r: int) -> BatchOutcome:
        """Classify a batch.

        Args:
            images: uint8, each ``(3, H, W)``.
            r: the degree for all of them.

        Returns:
            One ``(C,)`` float32 array of probabilities per image, or the ``ForwardFailed`` of an
            image for which the model gave no finite answer.

        Raises:
            ForwardFailed: the batch could not be computed; the engine goes on.
        """
        return await self._replicas[self._room.freest()].run(images, r)

    async def room(self) -> None:
        """Return once another batch would find a lane that has nothing to do."""
        await self._room.wait()

    def run_blocking(self, images: Sequence[Tensor], r: int) -> BatchOutcome:
        """``run``, on the calling thread and the first device."""
        return self._replicas[0].run_blocking(images, r)

    async def measure(self, r: int, batch: int) -> float:
        """Seconds that computing a batch of random images takes; merging weights is not counted.

        Raises:
            ForwardFailed: it could not be computed; the engine goes on.
        """
        return await self._replicas[0].on_thread(partial(self.measure_blocking, r, batch))

    def measure_blocking(self, r: int, batch: int) -> float:
        """``measure``, on the calling thread: for a caller that is alone with the engine."""
        self._replicas[0].prepare(batch, r)
        return self.run_blocking(self._random_images(batch), r).compute_s

    async def merge_map(self, image: Tensor, r: int) -> MergeMap:
        """What merges in one image, uint8 ``(3, H, W)``; PyTorch computes it, whatever the backend.

        Raises:
            ForwardFailed: it could not be computed; the engine goes on.
        """
        first = self._replicas[0]
        return await first.on_thread(partial(first.merge_map, image, r))

    async def warm_up(self, *, measured: bool = False) -> WarmUp:
        """Run the model for the first time: check that it can be served, and measure two batches.

        Two are enough to begin with, as far apart as can be: one image without compression, and
        several at the highest degree.  All else is measured while no request waits.

        Args:
            measured: this device's latencies are known; nothing is measured then.

        Raises:
            SettingsError: the model's scores do not fit its labels.
            Exception: whatever the model raises if it cannot be run.
        """
        started = self._clock()
        first: tuple[Measurement, ...] = ()
        for replica in reversed(self._replicas):
            first = await replica.on_thread(partial(self._warm_up, replica, measured))
        return WarmUp(first, self._clock() - started)

    def close(self) -> None:
        """End all threads; a batch that is running is not waited for."""
        for replica in self._replicas:
            replica.close()

    def release(self) -> None:
        """Forget the model once it is closed and idle, however long this object is still held."""
        for replica in self._replicas:
            replica.release()
        for heavy in ("loaded", "bank", "model", "_replicas", "_samples"):
            self.__dict__.pop(heavy, None)

    def _warm_up(self, replica: Replica, measured: bool) -> tuple[Measurement, ...]:
        one = self._random_images(1)
        self._check_classes(replica.classify(one, self.r_source))
        if measured:
            replica.compute(one, self.max_r)
            return ()
        cells = {(0, 1), (self.max_r, min(self._max_batch_size, _WARM_UP_BATCH))}
        return tuple(self._first_measurement(replica, *cell) for cell in sorted(cells))

    def _first_measurement(self, replica: Replica, r: int, batch: int) -> Measurement:
        """The faster of two runs: the first one of a shape is slow."""
        images = self._random_images(batch)
        replica.prepare(batch, r)
        seconds = min(replica.compute(images, r).compute_s for _ in range(_WARM_UP_RUNS))
        return Measurement(r, batch, seconds, spread=0.0, runs=1)

    def _random_images(self, count: int) -> list[Tensor]:
        """As many images as asked for, made once and kept."""
        missing = count - len(self._samples)
        if missing > 0:
            shape = (missing, *self.loaded.input_size)
            generator = torch.Generator().manual_seed(0)
            self._samples += torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return self._samples[:count]

    def _check_classes(self, outputs: Tensor) -> None:
        if outputs.shape[1] != len(self.labels):
            raise SettingsError(
                f"the model gives {outputs.shape[1]} scores but has {len(self.labels)} labels; "
                "serve a model with a classification head and one label per class"
            )


def load_engine(settings: Settings) -> Engine:
    """Load what the settings name: model, bank, device.

    Raises:
        TocomError: the model or the bank cannot be loaded or do not fit each other.
        SettingsError: the settings do not fit this machine or model.
    """
    loaded, bank, path = load_parts(settings)
    return Engine(loaded, bank, settings, bank_path=path)


def _compressed(loaded: LoadedModel, bank: Bank | None, settings: Settings) -> CompressedViT:
    """Wrap the model as it and its bank were trained, unless the settings say otherwise."""
    method = settings.method
    if bank is not None and bank.method != method:
        if "method" in settings.model_fields_set:
            logger.warning("method=%s, but the bank was trained with %s", method, bank.method)
        else:
            method = bank.method
    prop_attn = loaded.choose_prop_attn(settings.prop_attn, bank)
    model = CompressedViT(loaded.vit, method, prop_attn).eval()
    model.attention = settings.attention
    return model

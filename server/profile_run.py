"""One run of `tocom profile`: what is measured, in which order, and what is kept on the way."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

from tqdm import tqdm

from server.accuracy_sources import calibration_images, measure_agreement, read_evaluation
from server.clock import Clock, monotonic
from server.engine import Engine
from server.errors import SettingsError
from server.grid import batch_sizes
from server.latency_rounds import Cell, LatencyRounds
from server.profile_options import ProfileOptions
from server.stored_profile import differences
from tocom_core.latency_profile import Accuracy, LatencyProfile

logger = logging.getLogger(__name__)

CALIBRATION_BATCH = 16


class ProfileRun:
    """Measures an engine and writes its profile, anew after each round.

    A file that is there already and is of the same model on the same device is continued.

    Args:
        engine: nobody else uses it meanwhile.
        max_batch_size: of the server that the profile is for.
        options: what to measure.
        clock: for the time that may be spent.

    Raises:
        SettingsError: the options do not fit the model, or the file is of another one.
        ProfileError: the file is there and is no profile.
    """

    def __init__(
        self,
        engine: Engine,
        max_batch_size: int,
        options: ProfileOptions,
        clock: Clock = monotonic,
    ) -> None:
        self._engine = engine
        self._max_batch_size = max_batch_size
        self._options = options
        self._clock = clock
        self._earlier = self._read_earlier()
        known = self._earlier.measurements if self._earlier else ()
        self._accuracies = tuple(self._earlier.accuracies) if self._earlier else ()
        if options.evaluation is not None:
            self._take(read_evaluation(options.evaluation, engine))
        self._rounds = LatencyRounds(engine.measure_blocking, self._cells(), options.repeats, known)

    def run(self) -> LatencyProfile:
        """Measure what is missing; when interrupted it can be started again to go on.

        Returns:
            the profile as it was written.

        Raises:
            ProfileError: it cannot be written, or too few batches could be run.
            DataError: there are no images to calibrate with.
        """
        started = self._clock()
        while cells := self._rounds.next_round():
            for cell in tqdm(cells, desc="latency", unit="batch", leave=False):
                self._rounds.run(cell)
            self._write()
            if self._clock() - started >= self._options.seconds:
                logger.info("the time is up; run the command again to go on measuring")
                break
        if self._options.calibration is not None:
            self._calibrate(self._options.calibration)
        return self._write()

    def _calibrate(self, place: str) -> None:
        images = calibration_images(place, self._options.calibration_count, self._engine.loaded)
        batch = min(self._max_batch_size, CALIBRATION_BATCH)
        self._take(measure_agreement(self._engine, images, self._engine.work, batch))

    def _take(self, accuracies: Sequence[Accuracy]) -> None:
        """Replace what was known from the same source."""
        sources = {accuracy.source for accuracy in accuracies}
        kept = tuple(a for a in self._accuracies if a.source not in sources)
        self._accuracies = (*kept, *accuracies)

    def _write(self) -> LatencyProfile:
        profile = self._engine.own_profile(self._rounds.measurements())
        if any(accuracy.source == "evaluation" for accuracy in self._accuracies):
            accuracies = self._accuracies
        else:
            accuracies = (*profile.accuracies, *self._accuracies)
        serving = self._earlier.serving if self._earlier else None
        profile = replace(profile, accuracies=accuracies, serving=serving)
        profile.save(self._options.output)
        return profile

    def _cells(self) -> Iterable[Cell]:
        degrees, largest = sorted(self._engine.work), self._max_batch_size
        for r in self._options.degrees or ():
            if r not in self._engine.work:
                raise SettingsError(f"--degrees {r}: this model has degrees 0 to {degrees[-1]}")
        for size in self._options.batch_sizes or ():
            if not 1 <= size <= largest:
                raise SettingsError(f"--batch-sizes {size}: --max-batch-size is {largest}")
        sizes = self._options.batch_sizes or {*batch_sizes(largest), largest}
        return [(r, size) for r in self._options.degrees or degrees for size in sizes]

    def _read_earlier(self) -> LatencyProfile | None:
        path = self._options.output
        if self._options.overwrite or not path.exists():
            return None
        earlier = LatencyProfile.load(path)
        mend = "name another --output, or --overwrite it"
        engine = self._engine
        if other := differences(earlier.model, engine.model_identity):
            raise SettingsError(f"{path} is of another model: {other}; {mend}")
        if other := differences(earlier.device, engine.device_identity):
            raise SettingsError(f"{path} is of another device: {other}; {mend}")
        if (largest := max(m.batch for m in earlier.measurements)) > self._max_batch_size:
            raise SettingsError(
                f"{path} holds batches of {largest}: give --max-batch-size {largest}, or {mend}"
            )
        logger.info("continuing %s (%d cells)", path, len(earlier.measurements))
        return earlier

"""The order of a bench: start or find the server, measure it, replay every seed, keep the results.

`BenchRun.report` grows as results come in and is written after each seed, so that whatever ends a
bench early costs no finished seed.
"""

import argparse
import asyncio
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import aiohttp

from server.arrivals import Trace
from server.bench_images import Pictures, open_pictures
from server.bench_options import BenchOptions
from server.bench_report import BenchReport, write_summary
from server.calibration import calibrate
from server.capacity import Capacity, capacity, restore, settle, single_latency_s
from server.fates import write_requests
from server.open_loop import Client
from server.replay import Replay, replay
from server.served_process import MeasurementError, serve
from server.settings import Settings
from server.timeline_plot import PlottedRun, plot_timeline
from tocom_client import Client as Operator
from tocom_client import TocomClientError

logger = logging.getLogger(__name__)

SLO_SINGLES = 10
"""The SLO is so many times the latency of a request that is alone in the server."""
SLO_TOLERANCE = 0.01
QUIET = ("--no-idle-profiling", "--live-share=0")
"""The latency of a single request is taken without anything else going on in the server."""


class BenchRun:
    """One bench from beginning to end.

    Args:
        options: what to do.
        flags: for the server, if one is to be started.
        trace: what to replay; None: nothing.
        command: for the report.

    Attributes:
        report: what was found so far.
    """

    def __init__(
        self, options: BenchOptions, flags: Sequence[str], trace: Trace | None, command: str
    ) -> None:
        self._options, self._flags, self._trace = options, tuple(flags), trace
        self._pictures: Pictures | None = None
        self.report = BenchReport(command, trace.name if trace else "")

    def measure(self) -> None:
        """Do it all.

        Raises:
            MeasurementError: the server cannot be measured.
        """
        slo_ms = self._options.slo_ms
        if slo_ms is None:
            with self._server(QUIET) as url:
                slo_ms = asyncio.run(self._measure_slo_ms(url))
        self.report.slo_s = slo_ms / 1000
        with self._server((f"--slo-ms={slo_ms:g}",)) as url:
            asyncio.run(self._bench(url))

    @contextmanager
    def _server(self, flags: Sequence[str]) -> Iterator[str]:
        """The URL of the user's server, or of one that is started with these flags too."""
        try:
            if self._options.url is not None:
                yield self._options.url
                return
            logger.info("starting a server")
            with serve([*self._flags, *flags]) as served:
                yield served.url
        except (aiohttp.ClientError, TocomClientError, TimeoutError) as error:
            raise MeasurementError(f"the server cannot be measured: {error}") from error

    async def _measure_slo_ms(self, url: str) -> float:
        """Ten times the latency of a single request at r=0, to a tenth of a millisecond."""
        pictures = self._open_pictures(url)
        logger.info("measuring the latency of a single request")
        async with Client(url, pictures.files, 0) as client:
            mode = (await client.control.compression()).mode
            try:
                single_s = await single_latency_s(client)
            finally:
                await restore(client, mode)
        self.report.single_latency_s = single_s
        return round(1000 * SLO_SINGLES * single_s, 1)

    async def _bench(self, url: str) -> None:
        """Everything that happens on the server with the SLO; the dial is given back."""
        pictures = self._open_pictures(url)
        async with Client(url, pictures.files, 0) as client:
            state = await client.control.compression()
            try:
                await self._compare_slo(client)
                await self._measure_capacity(client, state.max_r)
                await self._save_profile(client)
                if self._trace is not None:
                    await self._replay_all(client, self._trace, url, pictures)
            finally:
                await restore(client, state.mode)
        self.report.complete = True
        self._write()

    def _open_pictures(self, url: str) -> Pictures:
        """The photographs, with classes of the model that is served there."""
        if self._pictures is None:
            options = self._options
            with Operator(url) as operator:
                model = operator.model()
            self._pictures = open_pictures(
                options.images, options.split, options.image_count, model.labels
            )
            self.report.model = f"{model.name} ({model.digest[:12]})"
            self.report.device = f"{model.device}, {model.dtype}"
            self.report.correctness_unknown = self._pictures.unknown
        return self._pictures

    async def _compare_slo(self, client: Client) -> None:
        """Note what SLO the server has itself, above all if it is another one."""
        own_s, asked_s = await client.gauge("tocom_slo_seconds"), self.report.slo_s
        if math.isnan(own_s):
            return
        self.report.server_slo_s = own_s
        if abs(own_s - asked_s) > SLO_TOLERANCE * asked_s:
            self._note(
                f"the server aims at an SLO of {1000 * own_s:g} ms, the bench counts "
                f"{1000 * asked_s:g} ms: start the server with --slo-ms={1000 * asked_s:g}, or "
                f"bench with --slo-ms {1000 * own_s:g}"
            )

    async def _measure_capacity(self, client: Client, highest: int) -> None:
        given = self._options.capacity
        if given is not None:
            self.report.capacities = [Capacity(0, given)]
            self._note("the capacity was given, not measured")
            return
        for r in sorted({0, highest}):
            self.report.capacities.append(await capacity(client, r))
            logger.info(
                "capacity at r=%d: %.1f images/s", r, self.report.capacities[-1].images_per_s
            )

    async def _save_profile(self, client: Client) -> None:
        if self._options.save_profile is not None:
            logger.info("measuring batches under load")
            profile = await calibrate(client, largest_batch(self._flags))
            profile.save(self._options.save_profile)

    async def _replay_all(self, client: Client, trace: Trace, url: str, pictures: Pictures) -> None:
        rate_unit = self.report.capacities[0].images_per_s
        for seed in self._options.seeds:
            await settle(client)
            described = trace.describe(rate_unit, seed)
            logger.info("seed %d: %s", seed, described)
            async with Client(url, pictures.files, seed, self._options.deadline_ms) as sender:
                done = await replay(
                    sender,
                    pictures,
                    trace.times(rate_unit, seed),
                    seed=seed,
                    seconds=trace.seconds(rate_unit),
                    slo_s=self.report.slo_s,
                )
            self.report.described.append(described)
            self.report.replays.append(done)
            self._keep(done)

    def _keep(self, done: Replay) -> None:
        """Say how a seed went, and write it where results are wanted."""
        figures = done.figures
        logger.info(
            "seed %d: %.2f %% of %d in time, mean r %s%s",
            done.seed,
            100 * (figures.attainment or 0.0),
            figures.offered,
            "unknown" if figures.mean_r is None else f"{figures.mean_r:.1f}",
            "" if done.kept_up else "; NOT VALID: the client did not keep up",
        )
        self._write()
        if self._options.output is None:
            return
        folder = Path(self._options.output)
        write_requests(folder / f"requests_seed{done.seed}.csv", done.fates)
        if self._options.plot:
            plot_timeline(
                folder / f"timeline_seed{done.seed}.png",
                [PlottedRun("real server", done.fates, figures.seconds)],
                self.report.slo_s,
                title=f"{self.report.trace}, seed {done.seed}",
                capacities={f"capacity r={c.r}": c.images_per_s for c in self.report.capacities},
            )

    def _write(self) -> None:
        if self._options.output is not None:
            write_summary(Path(self._options.output), self.report)

    def _note(self, text: str) -> None:
        logger.warning("%s", text)
        self.report.notes.append(text)


def largest_batch(flags: Sequence[str]) -> int:
    """What the server's flags say, else the setting's default."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    default = Settings.model_fields["max_batch_size"].default
    parser.add_argument("--max-batch-size", type=int, default=default)
    return int(parser.parse_known_args(list(flags))[0].max_batch_size)

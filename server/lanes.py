"""Parts of one batch, side by side on the cores of a CPU.

With several threads inside each operation all of them meet after every matrix product, some hundred
times per forward pass, and wait for the slowest; whatever else runs on the machine (decoding, a
neighbour) makes one of them late each time.  Lanes share a batch out by images instead and meet
once, at its end: ViT-Tiny at r=16 takes a fifth to a third less time on two cores
(``benchmarks/lanes.py``).
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor

from server.clock import Clock, monotonic
from server.errors import SettingsError

MOST_LANES = 4
"""As many at most where none are asked for: thin slices of a batch use a core less well."""

OnPart = Callable[[float | None], None]
"""Told that a part of a batch is over, so that the next batch may be chosen; and for how many
seconds it kept its lane from others, that is since the part before it on that lane had ended. None
where it has fewer images than other parts, or where there are no lanes."""


def choose_lanes(asked: int, threads: int, device_type: str) -> int:
    """How many lanes the settings and the machine make.

    Args:
        asked: the setting; 0 takes one per thread, at most ``MOST_LANES``, and rather a number that
            leaves no thread without work.
        threads: of the model.
        device_type: an accelerator runs a batch as a whole, whatever was asked for.

    Raises:
        SettingsError: more were asked for than there are threads.
    """
    if device_type != "cpu":
        return 1
    if asked > threads:
        have = f"the model has {threads} CPU thread{'s' * (threads > 1)}"
        raise SettingsError(f"lanes={asked}: {have} to share; lower lanes or raise threads")
    if asked or threads == 1:
        return asked or 1
    counts = range(2, min(threads, MOST_LANES) + 1)
    return max(counts, key=lambda count: (threads // count * count, count))


def use_threads(count: int) -> None:
    """Let PyTorch's operations use ``count`` threads when called from this thread.

    OpenMP keeps that number per thread.  PyTorch keeps the last one set anywhere as well, and gives
    it to each thread that has none when that thread first asks, which is why it is made to ask now.
    """
    torch.set_num_threads(count)
    torch.get_num_threads()


class Lanes:
    """Worker threads that share out batches.

    Args:
        count: how many; a single one is the calling thread itself.
        threads: of the model, shared out among them; batches of one image keep all.
        clock: measures parts.
    """

    def __init__(self, count: int, threads: int, clock: Clock = monotonic) -> None:
        self.count = count
        self._clock = clock
        self._ended: dict[int, float] = {}  # the last part on each thread
        self._pool: ThreadPoolExecutor | None = None
        if count > 1:
            self._pool = ThreadPoolExecutor(count, thread_name_prefix="lane")
            self._prepare(self._pool, threads)

    def run(
        self,
        job: Callable[[Tensor], Tensor],
        images: Tensor,
        *,
        whole: bool | None = None,
        on_part: OnPart | None = None,
    ) -> Tensor:
        """Apply ``job`` to parts of ``images``, as equal as possible, side by side.

        All parts are done when this returns or raises, so that nobody else sees the weights in use.
        Several threads may call it: parts begin in the order in which they come.

        Args:
            job: ``(b, …)`` to ``(b, …)`` for any ``b`` of at least 1; called on several threads.
            images: ``(B, …)``.
            whole: do it on the calling thread, which has all of the model's threads; None asks
                ``keeps_whole``.
            on_part: called, on the lane's thread, when a part is over.

        Raises:
            Exception: what ``job`` raised first, in the order of the images.
        """
        whole = self.keeps_whole(len(images)) if whole is None else whole
        if self._pool is None or whole:
            return job(images)
        asked_at, count = self._clock(), min(self.count, len(images))
        largest = -(-len(images) // count)

        def run_part(part: Tensor) -> Tensor:
            lane = threading.get_ident()
            free_at = max(asked_at, self._ended.get(lane, asked_at))
            try:
                return job(part)
            finally:
                self._ended[lane] = ended_at = self._clock()
                if on_part is not None:
                    on_part(ended_at - free_at if len(part) == largest else None)

        parts = [self._pool.submit(run_part, part) for part in images.tensor_split(count)]
        wait(parts)
        try:
            return torch.cat(list(map(Future.result, parts)))
        finally:
            # The traceback of a failure holds this frame: with the failure in it, the tensors of
            # the failed pass would live until the next garbage collection.
            parts.clear()

    def keeps_whole(self, images: int) -> bool:
        """Whether a batch of so many images is not shared out, and so has all threads."""
        return self.count == 1 or images <= 1

    def close(self) -> None:
        """End the threads; parts that are running are not waited for."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, pool: ThreadPoolExecutor, threads: int) -> None:
        """Start all threads and give each its share, leaving this thread's own number as it was."""
        own = torch.get_num_threads()
        started = threading.Barrier(self.count)

        def begin() -> None:
            use_threads(max(1, threads // self.count))
            started.wait()

        wait([pool.submit(begin) for _ in range(self.count)])
        use_threads(own)

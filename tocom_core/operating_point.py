"""What one degree of compression costs and delivers: a torch-free record.

The method measures or estimates it, the server's controller chooses by it; neither needs
the other's imports for that.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """One degree `r` of a served model on one device, or on several that are alike.

    Attributes:
        r: tokens merged per layer.
        batch_seconds: believed duration of a batch of 1, 2, … images at this degree, rising; its
            length is the largest batch.
        batch_size: images of the efficient batch: the smallest whose throughput is next to the
            best that a batch of bearable duration reaches.
        relative_throughput: `images_per_s` relative to that of r=0.
        expected_accuracy: top-1 (or agreement with `r_source`) as a fraction from 0 to 1; None
            where nothing is known.
        measured: whether this degree was run on this device; else it is derived from others.
        pays: whether it is faster than every lower degree with its efficient batch. A degree that
            does not pay is never chosen by itself.
        devices: how many devices compute batches of their own, side by side.
        images_per_s: throughput with efficient batches, of all devices together.
    """

    r: int
    batch_seconds: tuple[float, ...]
    batch_size: int
    relative_throughput: float
    expected_accuracy: float | None = None
    measured: bool = False
    pays: bool = True
    devices: int = 1
    images_per_s: float = field(init=False)

    def __post_init__(self) -> None:
        """Work out the throughput once; decisions ask for it all the time."""
        images_per_s = self.devices * self.batch_size / self.batch_seconds[self.batch_size - 1]
        object.__setattr__(self, "images_per_s", images_per_s)

    def batch_s(self, size: int) -> float:
        """Return the duration in seconds of a batch of `size` images, at least 1.

        Beyond the largest batch several are counted.
        """
        largest = len(self.batch_seconds)
        if size <= largest:
            return self.batch_seconds[size - 1]
        full, rest = divmod(size, largest)
        return full * self.batch_seconds[-1] + (self.batch_seconds[rest - 1] if rest else 0.0)

    def clear_s(self, count: int) -> float:
        """Return how long `count` images take in efficient batches, one after the other.

        Several devices, all free, begin one each, and the next when they are done.
        """
        full, rest = divmod(count, self.batch_size)
        full_s = self.batch_seconds[self.batch_size - 1]
        rest_s = self.batch_seconds[rest - 1] if rest else 0.0
        if self.devices == 1:
            return full * full_s + rest_s
        rounds, others = divmod(full, self.devices)
        return rounds * full_s + max(full_s if others else 0.0, rest_s)

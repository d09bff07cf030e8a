"""What one degree of compression costs and delivers: a torch-free record.

The method measures or estimates it, the server's controller chooses by it; neither needs
the other's imports for that.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """One degree `r` of a served model.

    Attributes:
        r: tokens merged per layer.
        relative_throughput: images/s relative to r=0 at full batches; the arithmetic ratio
            (FLOPs at r=0 over FLOPs at r) as long as nothing was measured.
        images_per_s: throughput at full batches; None as long as nothing was measured.
        expected_accuracy: top-1 as a fraction (0 to 1) from the checkpoint's own evaluation
            table; None where there is none.
        measured: whether `relative_throughput` comes from running the model.
    """

    r: int
    relative_throughput: float
    images_per_s: float | None = None
    expected_accuracy: float | None = None
    measured: bool = False

"""Batch sizes that have a CUDA graph: powers of two, and what lies half-way between two of them.

A graph holds for one batch size, so a batch is padded to the next bucket: by less than half (17
images to 24), by a sixth where all sizes are as likely. Only where graphs are used; anybody
else computes exactly the images there are.
"""


def bucket_for(count: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, … that holds ``count`` images.

    Raises:
        ValueError: ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"count={count}: a batch has at least one image")
    power = 1 << (count - 1).bit_length()
    middle = power // 4 * 3
    return middle if count <= middle else power


def buckets(largest: int) -> list[int]:
    """All buckets that batches of up to ``largest`` images need, ascending."""
    return sorted({bucket_for(count) for count in range(1, largest + 1)})

"""What one degree costs."""

import pytest

from tocom_core.operating_point import OperatingPoint

SLOW = OperatingPoint(r=0, batch_seconds=(0.05, 0.06, 0.07), batch_size=2, relative_throughput=1.0)


def test_many_images_take_several_batches_of_the_largest_size() -> None:
    """Seven images in threes: two full batches and one of one."""
    assert SLOW.batch_s(3) == 0.07
    assert SLOW.batch_s(7) == pytest.approx(0.07 + 0.07 + 0.05)


def test_a_queue_drains_in_efficient_batches() -> None:
    """Five images in twos are two full batches and one of one, each with its overhead."""
    assert SLOW.clear_s(5) == pytest.approx(0.06 + 0.06 + 0.05)
    assert SLOW.clear_s(4) == pytest.approx(0.12)
    assert SLOW.clear_s(0) == 0.0

"""Batch buckets."""

import pytest

from tocom_core.buckets import bucket_for, buckets


def test_buckets_are_powers_of_two_and_what_lies_between() -> None:
    """1, 2, 3, 4, 6, 8, …, up to the one that holds the largest batch."""
    assert buckets(50) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert buckets(1) == [1]
    assert buckets(64)[-1] == 64


def test_a_bucket_holds_its_batch_and_no_smaller_one_would() -> None:
    """The smallest that fits, by less than half too large, and a bucket is its own."""
    known = buckets(4096)
    for count in range(1, 1025):
        bucket = bucket_for(count)
        assert bucket == min(size for size in known if size >= count)
        assert bucket < 1.5 * count
        assert bucket_for(bucket) == bucket


@pytest.mark.parametrize("count", [0, -1])
def test_no_images_have_no_bucket(count: int) -> None:
    """Said in words."""
    with pytest.raises(ValueError, match="at least one"):
        bucket_for(count)

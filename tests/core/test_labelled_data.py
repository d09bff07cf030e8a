"""Which images are learned from, chosen by and reported on."""

import logging
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocom_core.errors import DataError
from tocom_core.labelled_data import (
    at_most,
    check_test_labels,
    class_names,
    hold_out,
    spread,
    warn_of_empty_classes,
)


class Labels:
    """A source that has labels and no pictures; an image's bytes are its number."""

    def __init__(self, labels: Sequence[int | None], names: Sequence[str] = ()) -> None:
        self._labels, self.class_names = labels, tuple(names)

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, index: int) -> int | None:
        """The class."""
        return self._labels[index]

    def image_bytes(self, index: int) -> bytes:
        """The number of the image."""
        return str(index).encode()

    def name(self, index: int) -> str:
        """The number in words."""
        return f"picture {index}"


def numbers(source: object) -> list[int]:
    """Which images of the original source are in a part of it."""
    return [int(source.image_bytes(i)) for i in range(len(source))]  # type: ignore[attr-defined, arg-type]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.data(), st.integers(0, 9))
def test_spread_is_a_fair_and_seeded_draw(
    labels: list[int], data: st.DataObject, seed: int
) -> None:
    """Exactly ``count`` images, each class within one of its share, nothing twice or lost."""
    count = data.draw(st.integers(0, len(labels)))
    source = Labels(labels)
    drawn, rest = (numbers(part) for part in spread(source, count, seed))
    assert len(drawn) == count
    assert sorted(drawn + rest) == list(range(len(labels)))
    assert (drawn, rest) == (sorted(drawn), sorted(rest))
    in_draw = Counter(labels[i] for i in drawn)
    for label, total in Counter(labels).items():
        assert abs(in_draw[label] - total * count / len(labels)) < 1
    assert numbers(spread(source, count, seed)[0]) == drawn


def test_spread_depends_on_the_seed() -> None:
    """Another seed draws other images of the same classes."""
    source = Labels([i % 4 for i in range(200)])
    assert numbers(spread(source, 40, 0)[0]) != numbers(spread(source, 40, 1)[0])


@pytest.mark.parametrize(("count", "expected"), [(0, 30), (12, 12), (30, 30), (99, 30)])
def test_at_most(count: int, expected: int) -> None:
    """0 is all of them, and so is more than there are."""
    assert len(at_most(Labels([0, 1, 2] * 10), count, 0)) == expected


def test_holding_out() -> None:
    """A tenth by default; what is learned from and what is held out share nothing."""
    learned, held_out = hold_out(Labels([0, 1] * 30), 0, 5)
    assert (len(learned), len(held_out)) == (54, 6)
    assert not set(numbers(learned)) & set(numbers(held_out))
    assert [learned.label(0), held_out.class_names] == [0, ()]
    for source, count in ((Labels([0] * 9), 0), (Labels([0] * 9), 5), (Labels([0] * 9), -1)):
        with pytest.raises(DataError, match=r"--val-images .* of 9 training images"):
            hold_out(source, count, 0)
    assert len(hold_out(Labels([0] * 9), 4, 0)[1]) == 4


def test_class_names_and_empty_classes(caplog: pytest.LogCaptureFixture) -> None:
    """Names of the data set or numbers; a class that no image shows is named in a warning."""
    assert class_names(Labels([0, 3])) == ("class 0", "class 1", "class 2", "class 3")
    caplog.set_level(logging.WARNING)
    source = Labels([0, 2], names=["ant", "bee", "cat"])
    warn_of_empty_classes(source, class_names(source))
    assert caplog.messages == ["no training image of class bee"]
    caplog.clear()
    warn_of_empty_classes(Labels([0]), tuple(f"kind {i}" for i in range(50)))
    assert caplog.messages[0].endswith("kind 20 and 29 more")


def test_labels_that_cannot_be_learned_are_refused() -> None:
    """No label, one beyond the names, one beyond the head, and other names in the test data."""
    with pytest.raises(DataError, match="picture 1 in the training data has no label"):
        class_names(Labels([0, None]))
    with pytest.raises(DataError, match="label 2 occurs, but the data set names only 2"):
        class_names(Labels([2], names=["a", "b"]))
    with pytest.raises(DataError, match="label 2 occurs in the test data"):
        check_test_labels(Labels([2]), ("a", "b"))
    with pytest.raises(DataError, match="picture 0 in the test data has no label"):
        check_test_labels(Labels([None]), ("a", "b"))
    check_test_labels(Labels([0, 1]), ("a", "b"))


def test_other_test_classes_are_named() -> None:
    """Only what differs, however many names both have; or that their order does."""
    names = tuple(f"kind {i:02}" for i in range(40))

    def told(theirs: Sequence[str]) -> str:
        with pytest.raises(DataError) as caught:
            check_test_labels(Labels([0], names=theirs), names)
        return str(caught.value)

    one = told([*names[:30], "cat", *names[31:]])
    assert "only the test data has cat, only the training data has kind 30;" in one
    assert "kind 00" not in one
    assert "only the training data has kind 39;" in told(names[:39])
    assert "another order" in told(tuple(reversed(names)))
    assert "kind 19 and 20 more" in told(["cat"])

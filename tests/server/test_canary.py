"""Trying a model before it serves: what is let through, and what is not."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from server.canary import IMAGES, random_images, try_out
from server.errors import ForwardFailed, ReloadFailed
from server.stats import BatchOutcome

SIZE = (8, 8)
CLASSES = 4


class Model:
    """Classifies an image by a rule."""

    def __init__(
        self,
        classify: Callable[[Tensor, int], int],
        labels: tuple[str, ...] = ("a", "b", "c", "d"),
        *,
        fails: bool = False,
        score: float = 1.0,
    ) -> None:
        self.classify = classify
        self.labels = labels
        self.fails = fails
        self.score = score
        self.max_r, self.r_source = 8, 0
        self.seen: list[tuple[int, tuple[int, ...]]] = []

    async def run(self, images: Sequence[Tensor], r: int) -> BatchOutcome:
        """Scores with one of them higher."""
        if self.fails:
            raise ForwardFailed("out of order")
        self.seen += [(r, tuple(image.shape)) for image in images]
        outputs: list[Any] = []
        for image in images:
            scores = np.zeros(CLASSES, np.float32)
            scores[self.classify(image, r) % CLASSES] = self.score
            outputs.append(scores if np.isfinite(self.score) else ForwardFailed("no numbers"))
        return BatchOutcome(outputs, r, 0.0, 0.01)


def brightness(image: Tensor, r: int) -> int:
    """A rule that tells images apart."""
    return int(image.float().mean()) // 16


def served(count: int) -> list[Tensor]:
    """Images as they were served."""
    generator = torch.Generator().manual_seed(1)
    shape = (count, 3, *SIZE)
    return list(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))


def trial(
    old: Model, new: Model, recent: int = IMAGES, bound: float = 0.5, size: Any = SIZE
) -> Any:
    """Try `new`."""
    return asyncio.run(try_out(old, new, served(recent), (SIZE, size), bound))


def test_the_same_model_agrees() -> None:
    """On the images that were served last, at its own degree and at its highest one."""
    new = Model(brightness)
    verdict = trial(Model(brightness), new)
    assert (verdict.images, verdict.recent, verdict.agreement) == (IMAGES, IMAGES, 1.0)
    assert {r for r, _ in new.seen} == {0, 8}


def test_too_few_served_images_are_filled_up() -> None:
    """With smooth random ones, always the same, and of many brightnesses."""
    assert trial(Model(brightness), Model(brightness), recent=5).recent == 5
    images = random_images(IMAGES, SIZE)
    assert all(torch.equal(a, b) for a, b in zip(images, random_images(IMAGES, SIZE), strict=True))
    assert all(image.shape == (3, *SIZE) and image.dtype == torch.uint8 for image in images)
    assert len({brightness(image, 0) for image in images}) > 2


def test_a_model_that_disagrees_is_refused() -> None:
    """Classes in another order: each image is something else now."""
    with pytest.raises(ReloadFailed, match="agrees with the present one on 0%") as caught:
        trial(Model(brightness), Model(lambda image, r: brightness(image, r) + 1))
    assert caught.value.agreement == 0.0


def test_the_bound_is_the_operators() -> None:
    """At 0 a model may differ in everything."""
    new = Model(lambda image, r: brightness(image, r) + 1)
    assert trial(Model(brightness), new, bound=0.0).agreement == 0.0


def test_other_classes_are_not_compared() -> None:
    """Only that there are finite scores, as many as labels."""
    new = Model(lambda image, r: 0, ("e", "f", "g", "h"))
    assert trial(Model(brightness), new).agreement is None
    with pytest.raises(ReloadFailed, match="4 scores for 2 labels"):
        trial(Model(brightness), Model(brightness, ("e", "f")))


def test_a_wrong_bank_shows_at_the_highest_degree() -> None:
    """Right at r_source, where no bank works, and noise at r=8."""

    def spoilt(image: Tensor, r: int) -> int:
        return brightness(image, r) + (1 if r else 0)

    with pytest.raises(ReloadFailed, match="bank"):
        trial(Model(brightness), Model(spoilt))
    trial(Model(spoilt), Model(spoilt))  # the present one is no better: that is not its fault


def test_failures_and_bad_numbers_are_refused() -> None:
    """In a whole batch or in one image of it."""
    with pytest.raises(ReloadFailed, match="out of order"):
        trial(Model(brightness), Model(brightness, fails=True))
    with pytest.raises(ReloadFailed, match="no numbers"):
        trial(Model(brightness), Model(brightness, score=float("nan")))


def test_a_broken_present_model_does_not_hold_a_reload_up() -> None:
    """The reload may be what mends the server."""
    assert trial(Model(brightness, fails=True), Model(brightness)).agreement is None


def test_images_are_fitted_to_another_input_size() -> None:
    """Those that were served are of the present model's size."""
    new = Model(brightness)
    assert trial(Model(brightness), new, size=(12, 16)).agreement > 0.8
    assert {shape for _, shape in new.seen} == {(3, 12, 16)}

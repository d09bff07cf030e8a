"""How good a bank is: a validation over a fixed grid of pairs and images.

The loss of random pairs is far too noisy to judge a run by: one draw of ``(0, 16)`` weighs more
than a hundred of neighbours.  So the same pairs on the same held-out images are asked each time,
and each is measured against what the student does there without a bank.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tocom_core.models import LoadedModel
from tocom_core.predictions import read_batches
from tocom_core.self_distillation import CompensatedViT, Distance
from tocom_core.sources import ImageSource

Pair = tuple[int, int]
_NOTHING = 1e-9
"""Less distance than this is none: there is nothing that a bank could win back."""


def grid_of_pairs(num_groups: int, anchor: int = 0, above: int = 0) -> list[Pair]:
    """From the anchor to each quarter of ``0…K``; from both ends and the middle to one another.

    Where only the groups above a degree learn, the quarters are those from there to ``K``.
    """
    span = num_groups - above
    quarters = sorted({above + round(span * quarter / 4) for quarter in range(5)})
    low, middle, high = quarters[0], quarters[len(quarters) // 2], quarters[-1]
    pairs = [(anchor, quarter) for quarter in quarters]
    pairs += [(high, low), (middle, low), (high, middle)]
    return [pair for pair in dict.fromkeys(pairs) if pair[0] != pair[1] and max(pair) > above]


class PairGrid:
    """Mean distance of student to teacher for each pair, with and without the bank.

    Args:
        student: the backbone with the bank that is being trained.
        loaded: for the evaluation transform and normalisation.
        source: held-out images; those that cannot be read are left out.
        distance: the training loss's, see ``self_distillation``.
        pairs: ``(m, n)`` to ask.
        batch_size: images per forward pass.
        amp: whether to run in bfloat16, as training does.
    """

    def __init__(
        self,
        student: CompensatedViT,
        loaded: LoadedModel,
        source: ImageSource,
        distance: Distance,
        pairs: list[Pair],
        batch_size: int = 32,
        amp: bool = False,
    ) -> None:
        self._student, self._loaded, self._distance = student, loaded, distance
        self.pairs, self._amp = pairs, amp
        batches = read_batches(source, loaded.transform, batch_size, skip_unreadable=True)
        self._images = [images for images, _ in batches]  # uint8, 150 kB each at 224 pixels
        self.count = sum(len(images) for images in self._images)
        self._teachers: dict[int, list[Tensor]] = {}
        self._plain: dict[Pair, float] = {}

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """Measure.

        Returns:
            ``score``, the sum over pairs of the distance with the bank in units of the sum without
            it (1: the bank does nothing; lower is better), and both distances per pair.
        """
        self._student.eval()
        device = next(self._student.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self._amp):
            if not self._teachers:
                self._prepare()
            banked = {pair: self._mean_distance(pair, with_bank=True) for pair in self.pairs}
        plain = sum(self._plain.values())
        figures = {"score": sum(banked.values()) / plain if plain > _NOTHING else 1.0}
        for name, distances in (("bank", banked), ("plain", self._plain)):
            figures |= {f"{name}_{m}_to_{n}": value for (m, n), value in distances.items()}
        return figures

    def _prepare(self) -> None:
        """Ask the teachers, and the students without a bank, once: they do not change."""
        for m, _ in self.pairs:
            if m not in self._teachers:
                self._teachers[m] = [self._outputs(images, m) for images in self._images]
        self._plain = {pair: self._mean_distance(pair, with_bank=False) for pair in self.pairs}

    def _mean_distance(self, pair: Pair, with_bank: bool) -> float:
        total = 0.0
        for images, teacher in zip(self._images, self._teachers[pair[0]], strict=True):
            student = self._outputs(images, pair[1], pair[0] if with_bank else None)
            total += float(self._distance(teacher, student).sum())
        return total / self.count

    def _outputs(self, images: Tensor, r: int, compensate_from: int | None = None) -> Tensor:
        """Outputs ``(B, C)`` float32 at degree ``r``, with the bank if a degree to come from."""
        x = self._loaded.normalize(images.to(next(self._student.parameters()).device))
        if compensate_from is None:
            return self._student.model(x, r).float()  # type: ignore[no-any-return]
        return self._student(x, compensate_from, r).float()  # type: ignore[no-any-return]


def as_markdown(figures: Mapping[str, float], pairs: list[Pair]) -> str:
    """The grid for people: one line per pair."""
    lines = ["| from r | to r | without bank | with bank | change |", "|---|---|---|---|---|"]
    for m, n in pairs:
        plain, banked = figures[f"plain_{m}_to_{n}"], figures[f"bank_{m}_to_{n}"]
        change = f"{banked / plain - 1:+.1%}" if plain > _NOTHING else ""
        lines.append(f"| {m} | {n} | {plain:.4f} | {banked:.4f} | {change} |")
    return "\n".join(lines)

"""Run a model over a data set: every image is decoded once, whatever is asked of it.

Logits of many variants of a model would not fit into memory for a large data set; batch by batch,
only what ``ImageFigures`` keeps of them stays.
"""

import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from tocom_core.bank import Bank
from tocom_core.compressed_vit import CompressedViT
from tocom_core.errors import BankMismatchWarning, CheckpointError, DataError
from tocom_core.image_figures import ImageFigures
from tocom_core.merger import WeightMerger
from tocom_core.models import LoadedModel
from tocom_core.sources import UNREADABLE, ImageSource, decode_rgb

DECODERS = 4
"""Threads that decode the next batch while the model computes."""
MEND = "mend or remove it"
"""What can be done about an unreadable image, whoever reads it."""


class Variant(NamedTuple):
    """One way to run a model.

    Attributes:
        r_source: the degree it counts as fine-tuned at; its own weights at this degree are what it
            is compared with.
        r: the degree it runs at.
        scaling: factor on the bank's deltas; ``None`` is without the bank.
    """

    r_source: int
    r: int
    scaling: float | None = None


@torch.inference_mode()
def predict(
    model: CompressedViT,
    loaded: LoadedModel,
    source: ImageSource,
    r: int | Sequence[int] = 0,
    batch_size: int = 64,
    *,
    skip_unreadable: bool = False,
) -> tuple[Tensor, Tensor]:
    """Logits of all images of a data set at one degree.

    Returns:
        ``(N, C)`` float32 logits and ``(N,)`` int64 labels (-1 where there is none), on the CPU;
        ``N`` is less than the source's length by the images that were skipped.

    Raises:
        DataError: an image cannot be read, unless those are to be skipped; or none can.
    """
    weight = next(model.parameters())
    model.eval()
    logits, labels = [], []
    batches = read_batches(source, loaded.transform, batch_size, skip_unreadable=skip_unreadable)
    for images, targets in batches:
        out = model(loaded.normalize(images.to(weight.device), weight.dtype), r)
        logits.append(out.float().cpu())
        labels.append(targets)
    return torch.cat(logits), torch.cat(labels)


class VariantRunner:
    """Runs variants of one model, and leaves its weights as they were.

    Args:
        model: on its device; put into eval mode.
        loaded: its transform, and what it was fine-tuned from.
        bank: the compensator, if there is one.
        batch_size: images per forward pass.
        skip_unreadable: leave out images that cannot be read, instead of raising.
        advice: what the error about such an image tells the user to do.
    """

    def __init__(
        self,
        model: CompressedViT,
        loaded: LoadedModel,
        bank: Bank | None = None,
        batch_size: int = 64,
        skip_unreadable: bool = False,
        advice: str = MEND,
    ) -> None:
        self.model = model.eval()
        self._loaded, self._bank = loaded, bank
        self._batch_size, self._skip_unreadable = batch_size, skip_unreadable
        self._advice = advice

    def figures(
        self, source: ImageSource, variants: Sequence[Variant]
    ) -> dict[Variant, ImageFigures]:
        """What each image says about each variant, beside the model's own degree.

        Raises:
            DataError: an image cannot be read, unless those are to be skipped.
            BankError: the bank does not fit the model, or does not reach a degree.
            CheckpointError: logits that are not finite.
        """
        mergers = self._mergers(variants)
        parts: dict[Variant, list[ImageFigures]] = {variant: [] for variant in variants}
        batches = read_batches(
            source,
            self._loaded.transform,
            self._batch_size,
            skip_unreadable=self._skip_unreadable,
            advice=self._advice,
        )
        with tqdm(total=len(source), unit="image") as progress:
            for images, labels in batches:
                for variant, figures in self._compare(images, labels, variants, mergers):
                    parts[variant].append(figures)
                progress.update(len(images))
        return {variant: ImageFigures.joined(found) for variant, found in parts.items()}

    def _compare(
        self,
        images: Tensor,
        labels: Tensor,
        variants: Sequence[Variant],
        mergers: Mapping[tuple[int, float], WeightMerger],
    ) -> Iterator[tuple[Variant, ImageFigures]]:
        """The figures of one batch; plain logits are computed once per degree."""
        weight = next(self.model.parameters())
        inputs = self._loaded.normalize(images.to(weight.device), weight.dtype)
        plain = cache(lambda r: self._logits(inputs, r))
        for variant in variants:
            r_source, r, scaling = variant
            if scaling is None or r == r_source:
                logits = plain(r)
            else:
                logits = self._compensated(inputs, r, mergers[r_source, scaling])
            yield variant, ImageFigures.of(logits, plain(r_source), labels)

    def _compensated(self, inputs: Tensor, r: int, merger: WeightMerger) -> Tensor:
        """Logits with the bank's deltas, which are taken out again: others share the weights."""
        try:
            merger.set_target(r)
            return self._logits(inputs, r)
        finally:
            merger.set_target(merger.r_source)

    @torch.inference_mode()
    def _logits(self, inputs: Tensor, r: int) -> Tensor:
        logits: Tensor = self.model(inputs, r).float().cpu()
        if not logits.isfinite().all():
            raise CheckpointError(
                f"the model's logits at r={r} are not finite; its weights are at fault, or a "
                "scaling that is too large for the bank"
            )
        return logits

    def _mergers(self, variants: Sequence[Variant]) -> dict[tuple[int, float], WeightMerger]:
        """One per degree of origin and scaling; a mismatch is told once, not by each."""
        mergers: dict[tuple[int, float], WeightMerger] = {}
        for r_source, _, scaling in variants:
            if self._bank is None or scaling is None or (r_source, scaling) in mergers:
                continue
            with warnings.catch_warnings():
                if mergers:
                    warnings.simplefilter("ignore", BankMismatchWarning)
                mergers[r_source, scaling] = WeightMerger(
                    self.model,
                    self._bank,
                    r_source,
                    scaling,
                    trained_from=self._loaded.trained_from,
                )
        return mergers


def read_batches(
    source: ImageSource,
    transform: Callable[[Image.Image], Tensor],
    batch_size: int,
    *,
    skip_unreadable: bool = False,
    advice: str = MEND,
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images in order, transformed without randomness, decoded one batch ahead.

    Yields:
        ``(B, 3, H, W)`` images as the transform gives them and ``(B,)`` int64 labels, -1 where
        there is none.  ``B`` is smaller where images were skipped, and never 0.

    Raises:
        DataError: an image cannot be read, unless those are to be skipped; or none can.
    """
    lock = threading.Lock()  # a source need not be thread-safe, and decoding takes the time

    def read(index: int) -> Tensor:
        with lock:
            content = source.image_bytes(index)
        return transform(decode_rgb(content))

    empty = True
    with ThreadPoolExecutor(DECODERS) as pool:
        ahead: deque[dict[int, Future[Tensor]]] = deque()
        for first in range(0, len(source) + batch_size, batch_size):
            indices = range(first, min(first + batch_size, len(source)))
            ahead.append({index: pool.submit(read, index) for index in indices})
            if len(ahead) == 1:
                continue
            images, labels = _collect(ahead.popleft(), source, None if skip_unreadable else advice)
            if images:
                empty = False
                yield torch.stack(images), torch.tensor(labels)
    if empty:
        raise DataError("not one image of the data set can be read")


def _collect(
    futures: Mapping[int, Future[Tensor]], source: ImageSource, advice: str | None
) -> tuple[list[Tensor], list[int]]:
    """Images and labels of one batch; without advice, of those that can be read."""
    images, labels = [], []
    for index, future in futures.items():
        try:
            images.append(future.result())
        except UNREADABLE as error:
            if advice is None:
                continue
            raise DataError(f"{source.name(index)} cannot be read: {error}; {advice}") from error
        label = source.label(index)
        labels.append(-1 if label is None else label)
    return images, labels

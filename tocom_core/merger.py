"""Fold a bank's deltas into the live weights, in place, exactly.

The live query and value rows are always rebuilt as ``pristine + delta``: summed in float32 and
cast once.  Nothing is ever added to or taken from the live weight, so no sequence of switches can
make it drift, and back at ``r_source`` it is bit for bit what the checkpoint held.

Rows that were built once are kept, as far as the memory allowed for them reaches, so that a switch
to a degree that was visited before is a copy and no arithmetic: on a GPU one kernel for all layers.
They are checked when they are built, and never again.
"""

import copy
import warnings
from collections import OrderedDict

import torch
from torch import Tensor

from tocom_core.bank import Bank, backbone_digest
from tocom_core.compressed_vit import CompressedViT
from tocom_core.errors import BankError, BankMismatchWarning

KEPT_BYTES = 256 * 2**20
"""Room for kept rows: all 17 degrees of ViT-Tiny (59 MB) or ViT-S, four of ViT-B in float32."""

Rows = list[Tensor]
"""The query rows, then the value rows of layer after layer: ``2 · depth`` tensors ``(D, D)``.

Contiguous all of them, for PyTorch then copies many in one kernel.
"""


class WeightMerger:
    """Holds a model's weights at the degree it is served at.

    Args:
        model: its query and value weights are changed in place by ``set_target``.
        bank: the compensator.
        r_source: the degree that the model was fine-tuned at, and whose weights it holds now.
        scaling: ``s``; default: the bank's own.
        trained_from: digest of the backbone that the model was fine-tuned from, if known; spares
            the warning when it is the bank's.
        kept_bytes: memory for the rows of degrees that were visited, on the model's device; those
            that were not used for the longest time go first.

    Raises:
        BankError: depth or width differ, or ``r_source`` is above ``K``.

    A bank that was trained on another backbone, by name or digest, only warns: a model fine-tuned
    from that backbone is what banks are for.
    """

    def __init__(
        self,
        model: CompressedViT,
        bank: Bank,
        r_source: int = 0,
        scaling: float | None = None,
        *,
        trained_from: str | None = None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        _check_fit(model, bank)
        bank.check_degree(r_source, "r_source")
        _warn_of_another_backbone(model, bank, trained_from)
        # A copy beside the weights, so that a switch moves nothing between devices.
        self._bank = copy.deepcopy(bank).to(next(model.parameters()).device)
        self._r_source = self._r_target = r_source
        self._scaling = scaling
        self._layers = [block.attn.qkv for block in model.vit.blocks]
        self._dim = model.embed_dim
        self._live: Rows = []
        self._live_at: list[int] = []
        self._pristine = self._room()
        torch._foreach_copy_(self._pristine, self._live_rows())
        self._kept: OrderedDict[int, Rows] = OrderedDict()
        self._most_kept = kept_bytes // _bytes_of(self._pristine)

    @property
    def r_target(self) -> int:
        """The degree that the live weights are for."""
        return self._r_target

    @property
    def num_groups(self) -> int:
        """``K``, the highest degree that can be set."""
        return self._bank.num_groups

    @property
    def r_source(self) -> int:
        """The degree that the pristine weights are for."""
        return self._r_source

    @property
    def kept_bytes(self) -> int:
        """What the rows that are kept take now, the pristine ones not counted."""
        return sum(map(_bytes_of, self._kept.values()))

    @torch.no_grad()
    def set_target(self, r: int) -> None:
        """Make the live weights those for degree ``r``.

        Atomic: all new rows are built and checked before the first live row is written.

        Raises:
            DegreeError: ``r`` is not in ``0…K``.
            BankError: a new weight would not be finite (in this dtype).
        """
        self._bank.check_degree(r)
        if r == self._r_target:
            return
        torch._foreach_copy_(self._live_rows(), self._rows_for(r))
        self._r_target = r

    def _rows_for(self, r: int) -> Rows:
        """The rows for degree ``r``, built if they are not kept."""
        if r == self._r_source:
            return self._pristine
        rows = self._kept.pop(r, None)
        if rows is None:
            rows = self._build(r)
        if self._most_kept:
            self._kept[r] = rows
            if len(self._kept) > self._most_kept:
                self._kept.popitem(last=False)
        return rows

    def _build(self, r: int) -> Rows:
        """The rows for degree ``r``, in the live dtype and on the live device."""
        delta = self._bank.delta(self._r_source, r, self._scaling)
        changes = [change for number in range(len(self._layers)) for change in delta[number]]
        rows = self._room()
        for new, pristine, change in zip(rows, self._pristine, changes, strict=True):
            new.copy_(pristine.float() + change.to(pristine.device))  # cast once
        if not torch.stack([row.isfinite().all() for row in rows]).all():
            raise BankError(
                f"the weights for r={r} would not be finite in {rows[0].dtype}; "
                f"the model stays at r={self._r_target}"
            )
        return rows

    def _room(self) -> Rows:
        """Memory for one degree's rows, in one piece, where and of what type the weights are."""
        weight = self._layers[0].weight
        shape = (2 * len(self._layers), self._dim, self._dim)
        return list(torch.empty(shape, dtype=weight.dtype, device=weight.device).unbind(0))

    def _live_rows(self) -> Rows:
        """Views of the live query and value rows of timm's fused ``qkv.weight``, made once.

        They are made anew when the weights lie elsewhere, as after ``model.to``.
        """
        weights = [layer.weight for layer in self._layers]
        places = [weight.data_ptr() for weight in weights]
        if places != self._live_at:
            whole = [weight.detach() for weight in weights]
            halves = [(weight[: self._dim], weight[2 * self._dim :]) for weight in whole]
            self._live = [half for pair in halves for half in pair]
            self._live_at = places
        return self._live


def _bytes_of(rows: Rows) -> int:
    return sum(row.nbytes for row in rows)


def _check_fit(model: CompressedViT, bank: Bank) -> None:
    """Raise ``BankError`` unless the bank's deltas fit the model's weights."""
    if (bank.depth, bank.embed_dim) != (model.depth, model.embed_dim):
        raise BankError(
            f"the bank is for {bank.depth} layers of width {bank.embed_dim}, but the model has "
            f"{model.depth} of width {model.embed_dim}; use a bank trained for its backbone"
        )
    for number, block in enumerate(model.vit.blocks):
        if block.attn.qkv.weight.shape != (3 * model.embed_dim, model.embed_dim):
            raise BankError(
                f"block {number}: qkv.weight is {tuple(block.attn.qkv.weight.shape)}, expected "
                f"{(3 * model.embed_dim, model.embed_dim)}; such heads cannot take a bank"
            )


def _warn_of_another_backbone(model: CompressedViT, bank: Bank, trained_from: str | None) -> None:
    """Say that the bank was trained on another backbone than this model's, if it was."""
    cfg = getattr(model.vit, "pretrained_cfg", None) or {}
    arch = str(cfg.get("architecture") or "")
    if bank.arch and arch and bank.arch.split(".")[0] != arch.split(".")[0]:
        difference = f"the bank was trained on {bank.arch}, the model is {arch}"
    elif bank.backbone_digest and bank.backbone_digest not in (
        trained_from,
        backbone_digest(model.vit),
    ):
        difference = "the bank was trained on other weights than the model's"
    else:
        return
    warnings.warn(
        f"{difference}; expected if the model was fine-tuned from them, else compensation may "
        "harm: compare accuracy with and without the bank",
        BankMismatchWarning,
        stacklevel=3,
    )

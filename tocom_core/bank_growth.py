"""A bank that reaches further: groups for higher degrees, while those it has stay as they are.

``ΔW(m → n)`` adds up along any path of degrees, so the groups above ``K`` need none of those below
changed: what was measured of a bank up to ``K`` holds to the last bit for the grown one, and only
the new groups have to learn.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from tocom_core.bank import Bank
from tocom_core.bank_header import PROJECTIONS, BankHeader
from tocom_core.errors import BankError

Factors = tuple[Tensor, Tensor]
"""``A (n, D)`` and ``B (D, n)`` of one weight."""


class GrowingBank(nn.Module):
    """A bank whose lower groups are frozen and whose new ones learn.

    Args:
        base: the bank to grow from.
        header: of the grown bank; ``num_groups`` above the base's, all else as there.
        generator: for the new groups' ``A``; their ``B`` is zero, so that the grown bank does at
            first at a new degree what the old one does at its highest.

    Attributes:
        top: the new groups: a bank of its own that counts degrees from the base's ``K`` on.

    Raises:
        BankError: nothing to add, or a shared bank, whose only group serves all degrees.
    """

    def __init__(
        self, base: Bank, header: BankHeader, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if base.header.shared:
            raise BankError("a shared bank has one group for all degrees: there is none to add")
        if header.num_groups <= base.num_groups:
            raise BankError(
                f"the bank has {base.num_groups} groups already: it grows to more than that"
            )
        self.header, self.depth = header, header.depth
        self.base = base.requires_grad_(False)
        self.top = Bank(replace(header, num_groups=header.num_groups - base.num_groups))
        self.top.reset_parameters(generator)

    def layer_delta(self, layer: int, r_source: int, r_target: int) -> tuple[Tensor, Tensor]:
        """``(ΔW_q, ΔW_v)`` of one layer, each ``(D, D)``; only the new groups get a gradient.

        Raises:
            DegreeError: a degree is not in ``0…K``.
        """
        low, high = self._parts(r_source, r_target)
        (query, value), (more_query, more_value) = (
            self.base.layer_delta(layer, *low),
            self.top.layer_delta(layer, *high),
        )
        return query + more_query, value + more_value

    def layer_factors(self, layer: int, r_source: int, r_target: int) -> tuple[Factors, Factors]:
        """``A (n, D)`` and ``B (D, n)`` of query and value, with ``B A = ΔW``.

        Raises:
            DegreeError: a degree is not in ``0…K``.
        """
        low, high = self._parts(r_source, r_target)
        query, value = zip(
            self.base.layer_factors(layer, *low), self.top.layer_factors(layer, *high), strict=True
        )
        return _beside(*query), _beside(*value)

    @torch.no_grad()
    def grown(self) -> Bank:
        """Return one bank with all groups, on the CPU."""
        bank = Bank(self.header)
        for layer in range(self.depth):
            for projection in PROJECTIONS:
                for lower in (False, True)[: len(self.header.factor_names)]:
                    parts = [
                        part.factors(layer, projection, lower) for part in (self.base, self.top)
                    ]
                    down, up = _beside(*[(a.cpu(), b.cpu()) for a, b in parts])
                    own_down, own_up = bank.factors(layer, projection, lower)
                    own_down.copy_(down)
                    own_up.copy_(up)
        return bank

    def _parts(self, r_source: int, r_target: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Split a pair of degrees into the base's part of the way and the new groups'."""
        until = self.base.num_groups
        low = min(r_source, until), min(r_target, until)
        return low, (max(r_source - until, 0), max(r_target - until, 0))


def _beside(first: Factors, second: Factors) -> Factors:
    """Return factors whose product is the sum of both products."""
    return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]], dim=1)

"""What a bank is for, how it was made, and how large its groups are: facts, and them as text."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tocom_core.bank import Bank
from tocom_core.bank_header import PROJECTIONS

_MADE = ("source", "file", "command", "images", "steps")
"""What of the provenance is told first."""


def bank_facts(bank: Bank, path: Path | None = None) -> dict[str, Any]:
    """Everything that a bank says of itself, and what can be computed from it.

    Args:
        bank: on the CPU.
        path: its file, for the size.

    Returns:
        JSON: the header's fields, ``digest``, ``parameters``, ``bytes`` (``None`` without a file)
        and ``groups`` as of ``group_norms``.
    """
    header = bank.header
    return {
        "arch": header.arch or None,
        "embed_dim": header.embed_dim,
        "depth": header.depth,
        "num_groups": header.num_groups,
        "rank": header.rank,
        "scaling": header.scaling,
        "method": header.method,
        "prop_attn": header.prop_attn,
        "shared": header.shared,
        "inversion": header.inversion,
        "backbone_digest": header.backbone_digest or None,
        "digest": bank.digest,
        "parameters": sum(parameter.numel() for parameter in bank.parameters()),
        "bytes": None if path is None else path.stat().st_size,
        "groups": group_norms(bank),
        "provenance": dict(header.provenance),
    }


@torch.no_grad()
def group_norms(bank: Bank) -> list[dict[str, Any]]:
    """How much each group changes the weights.

    Returns:
        for each group that the file holds ``r_from``, ``r_to`` and, as Frobenius norms of
        ``s · B A`` over all layers, ``q`` and ``v``; unitless, as the weights are.  A shared bank
        has one group; one without inversion has groups for the steps down as well.
    """
    count = 1 if bank.header.shared else bank.num_groups
    steps = [(i, i + 1) for i in range(count)]
    if not bank.header.inversion:
        steps += [(high, low) for low, high in steps]
    return [{"r_from": low, "r_to": high, **_norms(bank, low, high)} for low, high in steps]


def _norms(bank: Bank, r_from: int, r_to: int) -> dict[str, float]:
    squares = dict.fromkeys(PROJECTIONS, 0.0)
    for layer in range(bank.depth):
        factors = bank.layer_factors(layer, r_from, r_to)
        for projection, (a, b) in zip(PROJECTIONS, factors, strict=True):
            a, b = a.double(), b.double()
            # ‖BA‖² = ⟨BᵀB, AAᵀ⟩: matrices of the rank's size instead of the width's.
            squares[projection] += float(((b.T @ b) * (a @ a.T)).sum())
    return {name: math.sqrt(max(0.0, square)) for name, square in squares.items()}


def as_text(facts: Mapping[str, Any], place: str) -> str:
    """``bank_facts`` for a reader."""
    sizes = f"{facts['depth']} layers of width {facts['embed_dim']}"
    reach = f"degrees 0 to {facts['num_groups']} (K), rank {facts['rank']} per group"
    if facts["shared"]:
        reach += ", one group for all"
    if not facts["inversion"]:
        reach += ", steps down of their own"
    weighed = "with" if facts["prop_attn"] else "without"
    lines = {
        "for": f"{facts['arch'] or 'an architecture that it does not name'}, {sizes}",
        "covers": reach,
        "scaling": f"{facts['scaling']:g}",
        "trained with": f"{facts['method']}, {weighed} proportional attention",
        "backbone": facts["backbone_digest"] or "unknown: it fits whatever has these sizes",
        "size": _size(facts),
        "digest": facts["digest"],
        **_made(facts["provenance"]),
    }
    width = max(map(len, lines))
    told = [f"  {name:{width}}  {text}" for name, text in lines.items()]
    return "\n".join([str(place), *told, "", *_group_table(facts["groups"])])


def _size(facts: Mapping[str, Any]) -> str:
    text = f"{facts['parameters']:,} parameters"
    return text if facts["bytes"] is None else f"{text}, {facts['bytes'] / 1e6:.1f} MB"


def _made(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Where it comes from, the most telling first; the recipe on one line, the figures on one."""
    lines = {name: str(provenance[name]) for name in _MADE if name in provenance}
    recipe = provenance.get("recipe")
    if isinstance(recipe, Mapping):
        lines["recipe"] = ", ".join(f"{name}={value}" for name, value in recipe.items())
    rest = {k: v for k, v in provenance.items() if k not in (*_MADE, "recipe")}
    if rest:
        lines["figures"] = ", ".join(f"{name}={_short(value)}" for name, value in rest.items())
    return lines or {"made": "it does not say how"}


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _group_table(groups: list[dict[str, Any]]) -> list[str]:
    rows = [f"  {g['r_from']:>3} → {g['r_to']:<3} {g['q']:>10.4f} {g['v']:>10.4f}" for g in groups]
    return ["  group       norm of q  norm of v", *rows]

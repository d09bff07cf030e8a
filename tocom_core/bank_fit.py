"""Whether a bank fits a model, one finding for each thing that can be wrong, and how to mend it.

The server refuses what cannot work and warns once of what may harm; here everything is looked at
and told, what is right as well.
"""

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from tocom_core.bank import Bank
from tocom_core.bank_facts import group_norms
from tocom_core.compressed_vit import CompressedViT
from tocom_core.errors import BankError, BankMismatchWarning, UnsupportedModelError
from tocom_core.merger import WeightMerger
from tocom_core.models import LoadedModel
from tocom_core.schedule import Method

Severity = Literal["error", "warning", "note", "ok"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        severity: ``error``: it does not fit; ``warning``: it may harm; ``note``: good to know;
            ``ok``: as it should be.
        about: what was looked at.
        message: what was found.
        mend: what to do about it; empty where nothing needs to be done.
    """

    severity: Severity
    about: str
    message: str
    mend: str = ""


@dataclass(frozen=True)
class Serving:
    """How the model is going to be served; ``None`` leaves it to model and bank.

    Attributes:
        method: how tokens are removed.
        prop_attn: proportional attention.
        scaling: ``s``.
        max_r: the highest degree.
        dtype: of the weights.
    """

    method: Method | None = None
    prop_attn: bool | None = None
    scaling: float | None = None
    max_r: int | None = None
    dtype: torch.dtype = torch.float32


def examine(loaded: LoadedModel, bank: Bank, serving: Serving | None = None) -> list[Finding]:
    """Everything that decides whether the bank fits; the model's weights stay as they are.

    Args:
        loaded: the model.
        bank: as ``Bank.load`` gives it, so that its own tensors are finite and of their sizes.
        serving: how the two are going to be used.
    """
    serving = serving or Serving()
    try:
        model = CompressedViT(loaded.vit, serving.method or bank.method)
    except UnsupportedModelError as error:
        return [Finding("error", "model", str(error), "serve another model, or method")]
    sizes = _sizes(model, bank)
    found = [sizes, _backbone(loaded, bank), *_way(loaded, bank, serving), _groups(bank)]
    if sizes.severity == "error":
        return found
    found += _degrees(loaded, model, bank, serving)
    if all(finding.severity != "error" for finding in found):
        found.append(_weights(loaded, model, bank, serving))
    return found


def _sizes(model: CompressedViT, bank: Bank) -> Finding:
    there, here = (bank.depth, bank.embed_dim), (model.depth, model.embed_dim)
    if there != here:
        return Finding(
            "error",
            "sizes",
            f"the bank is for {there[0]} layers of width {there[1]}, the model has {here[0]} of "
            f"width {here[1]}",
            "use a bank trained for its backbone, or train one: tocom train --model …",
        )
    fused = (3 * model.embed_dim, model.embed_dim)
    for number, block in enumerate(model.vit.blocks):
        if (shape := tuple(block.attn.qkv.weight.shape)) != fused:
            return Finding(
                "error",
                "sizes",
                f"qkv.weight of block {number} is {shape}, not {fused}: such heads take no bank",
                "serve it without one: --bank none",
            )
    return Finding("ok", "sizes", f"{here[0]} layers of width {here[1]}")


def _backbone(loaded: LoadedModel, bank: Bank) -> Finding:
    """Whose weights it was trained on: the model's own, or those it was fine-tuned from."""
    if bank.arch and bank.arch.split(".")[0] != loaded.architecture.split(".")[0]:
        return Finding(
            "warning",
            "backbone",
            f"the bank was trained on {bank.arch}, the model is {loaded.architecture}",
            "use a bank of its architecture; --images measures whether this one helps",
        )
    if not bank.backbone_digest:
        return Finding(
            "warning",
            "backbone",
            "the bank does not say which weights it was trained on",
            "tocom bank convert --model BACKBONE writes it down; --images measures whether the "
            "bank helps",
        )
    if bank.backbone_digest == loaded.digest:
        return Finding("ok", "backbone", "the bank was trained on exactly these weights")
    if bank.backbone_digest == loaded.trained_from:
        return Finding("ok", "backbone", "the model was fine-tuned from the bank's backbone")
    origin = (
        "and the model does not say what it was fine-tuned from"
        if loaded.trained_from is None
        else "and the model says that it was fine-tuned from others"
    )
    return Finding(
        "warning",
        "backbone",
        f"the bank was trained on other weights ({bank.backbone_digest[:12]}…) than the model's "
        f"({loaded.digest[:12]}…), {origin}",
        "nothing, if it was fine-tuned from them; else train a bank on it (tocom train "
        "--init-bank goes on from this one); --images measures whether this one helps",
    )


def _way(loaded: LoadedModel, bank: Bank, serving: Serving) -> Iterator[Finding]:
    """How tokens are removed and weighed, as the bank was trained or not."""
    if serving.method is not None and serving.method != bank.method:
        yield Finding(
            "warning",
            "method",
            f"the bank was trained with {bank.method}, the model is served with {serving.method}",
            f"leave --method out, or give --method {bank.method}",
        )
    else:
        yield Finding("ok", "method", f"{bank.method}, as the bank was trained")
    if (serving.method or bank.method) != "merge":
        return
    wanted = loaded.prop_attn if serving.prop_attn is None else serving.prop_attn
    if wanted is not None and wanted != bank.prop_attn:
        whose = "asked for" if serving.prop_attn is not None else "as the model was fine-tuned"
        yield Finding(
            "warning",
            "prop_attn",
            f"the bank was trained with prop_attn={bank.prop_attn}; it is served with "
            f"prop_attn={wanted}, {whose}",
            f"--prop-attn {str(bank.prop_attn).lower()}, if the bank's is meant",
        )
    else:
        yield Finding("ok", "prop_attn", f"{bank.prop_attn}, as the bank was trained")


def _groups(bank: Bank) -> Finding:
    """Groups that change nothing were not trained."""
    idle = [g for g in group_norms(bank) if g["q"] == 0 and g["v"] == 0]
    if not idle:
        return Finding("ok", "groups", "finite, and each changes the weights")
    names = ", ".join(f"{g['r_from']}→{g['r_to']}" for g in idle[:4])
    more = "" if len(idle) <= 4 else f" and {len(idle) - 4} more"
    return Finding(
        "warning",
        "groups",
        f"these groups are zero and change nothing: {names}{more}",
        "they were not trained: train the bank (tocom train --init-bank)",
    )


def _degrees(
    loaded: LoadedModel, model: CompressedViT, bank: Bank, serving: Serving
) -> Iterator[Finding]:
    """Where the model's own degree and the wanted ones lie."""
    reach = min(bank.num_groups, model.max_r)
    if loaded.r_source > bank.num_groups:
        yield Finding(
            "error",
            "r_source",
            f"the model was fine-tuned at r={loaded.r_source}, the bank covers 0 to "
            f"{bank.num_groups}",
            "use a bank that covers it, or --bank none",
        )
    if serving.max_r is not None and serving.max_r > reach:
        yield Finding(
            "error",
            "max_r",
            f"max_r={serving.max_r} is asked for, with this bank r goes to {reach}",
            f"--max-r {reach}, or a bank that covers more",
        )
    in_full = (model.num_patches - 1) // model.depth
    if bank.num_groups > model.max_r:
        yield Finding(
            "note",
            "degrees",
            f"the bank covers 0 to {bank.num_groups}, more than changes this model: r goes to "
            f"{model.max_r}",
        )
    elif bank.num_groups < in_full:
        yield Finding(
            "note",
            "degrees",
            f"0 to {bank.num_groups}; without the bank r would go to {in_full}",
        )
    else:
        yield Finding("ok", "degrees", f"0 to {reach}")


def _weights(loaded: LoadedModel, model: CompressedViT, bank: Bank, serving: Serving) -> Finding:
    """Fold every degree into a copy of the weights, as the server would."""
    trial = CompressedViT(copy.deepcopy(loaded.vit).to(serving.dtype), model.method)
    dtype = str(serving.dtype).removeprefix("torch.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BankMismatchWarning)  # a finding of its own
            merger = WeightMerger(trial, bank, loaded.r_source, serving.scaling, kept_bytes=0)
        for r in range(min(bank.num_groups, model.max_r) + 1):
            merger.set_target(r)
    except BankError as error:
        return Finding("error", "weights", str(error), "a smaller --scaling, or another --dtype")
    scaling = bank.scaling if serving.scaling is None else serving.scaling
    text = f"finite in {dtype} at every degree, at scaling {scaling:g}"
    if scaling != bank.scaling:
        own = f"; the bank was trained at {bank.scaling:g}"
        return Finding("note", "weights", text + own)
    return Finding("ok", "weights", text)

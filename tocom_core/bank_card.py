"""The model card of a bank's repository: front matter for a hub, and a page for its readers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCardData

from tocom_core.bank import Bank

LIBRARY = "tocom-serve"


@dataclass(frozen=True)
class CardOptions:
    """What the files do not say.

    Attributes:
        title: of the page.
        license: as the hub calls it, ``apache-2.0`` say.
        base_model: repository of the backbone.
        datasets: the hub's names of what the bank was trained with.
        with_model: whether the repository has the model as well.
        repository: ``owner/name`` that it goes to; ``None``: nowhere yet.
    """

    title: str
    license: str | None = None
    base_model: str | None = None
    datasets: Sequence[str] = ()
    with_model: bool = False
    repository: str | None = None


def card(bank: Bank, options: CardOptions, evaluation: Mapping[str, Any] | None) -> str:
    """The whole ``README.md``.

    Args:
        bank: what it is about.
        options: what the bank does not say.
        evaluation: table of accuracy per degree, as a model file's header or ``tocom evaluate
            --output`` holds it; of this very bank.
    """
    rows = _rows(evaluation)
    data = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag="image-classification",
        tags=["token-compensator", "token-merging", "vision-transformer", "timm"],
        license=options.license,
        base_model=options.base_model,
        datasets=list(options.datasets) or None,
        metrics=["accuracy"] if rows else None,
    )
    parts = ["---", data.to_yaml(), "---", "", f"# {options.title}", "", _what(bank, options)]
    parts += ["", *_use(options), "", *_facts(bank)]
    if rows:
        parts += ["", *_accuracies(rows, evaluation or {})]
    command = bank.provenance.get("command")
    if command:
        parts += ["", "## How it was made", "", f"    {command}"]
    return "\n".join(parts) + "\n"


def _what(bank: Bank, options: CardOptions) -> str:
    backbone = bank.arch or "a Vision Transformer"
    text = (
        f"`bank.safetensors` is a token compensator bank for `{backbone}`: low-rank weight deltas "
        "that win back part of the accuracy that merging tokens costs, for that backbone and for "
        "models that were fine-tuned from it."
    )
    return f"{text} `model.safetensors` is such a model." if options.with_model else text


def _use(options: CardOptions) -> list[str]:
    bank, model = "bank.safetensors", "model.safetensors"
    if options.repository is not None:
        bank = model = f"hf-hub:{options.repository}"
    if not options.with_model:
        model = "MODEL"
    return [
        "## Use",
        "",
        "    pip install tocom-serve",
        f"    tocom bank check --model {model} --bank {bank}",
        f"    tocom serve --model {model} --bank {bank}",
    ]


def _facts(bank: Bank) -> list[str]:
    header = bank.header
    weighed = "with" if header.prop_attn else "without"
    removed = "merging" if header.method == "merge" else "pruning"
    groups = f"{'one shared group' if header.shared else f'{header.num_groups} groups'}"
    return [
        "| | |",
        "|---|---|",
        f"| degrees | 0 to {header.num_groups} |",
        f"| bank | {groups} of rank {header.rank}, for the query and value weights of "
        f"{header.depth} layers of width {header.embed_dim} |",
        f"| scaling | {header.scaling:g} |",
        f"| method | token {removed}, {weighed} proportional attention |",
        f"| backbone digest | `{header.backbone_digest or 'unknown'}` |",
        f"| bank digest | `{bank.digest}` |",
    ]


def _rows(evaluation: Mapping[str, Any] | None) -> list[tuple[int, float | None, float | None]]:
    """Degree, top-1 without and with the bank; only from a table that has both."""
    found: dict[int, dict[bool, float]] = {}
    own = (evaluation or {}).get("r_source")
    for row in (evaluation or {}).get("rows", ()):
        if row.get("top1") is not None and row.get("r_source", own) == own:
            found.setdefault(int(row["r"]), {})[bool(row["bank"])] = float(row["top1"])
    if not any(True in pair for pair in found.values()):
        return []
    return [(r, found[r].get(False), found[r].get(True)) for r in sorted(found)]


def _accuracies(
    rows: Sequence[tuple[int, float | None, float | None]], evaluation: Mapping[str, Any]
) -> list[str]:
    lines = ["## Accuracy", "", "| r | top-1 without the bank | with it |", "|---|---|---|"]
    lines += [f"| {r} | {_percent(plain)} | {_percent(own)} |" for r, plain, own in rows]
    of = f" of {evaluation['model']}" if evaluation.get("model") else ""
    on = f" on {evaluation['images']:,} images" if evaluation.get("images") else ""
    return [*lines, "", f"Measured by `tocom evaluate`{of}{on}."]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"

"""How accurate a model is at a degree, and how close to its uncompressed self."""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tocom_core.bank import Bank
from tocom_core.compressed_vit import CompressedViT
from tocom_core.data import evaluation_batches
from tocom_core.errors import DataError, TocomError
from tocom_core.merger import WeightMerger
from tocom_core.models import (
    LoadedModel,
    default_model_path,
    find_bank,
    load_model,
    pick_device,
    store_evaluation,
)
from tocom_core.options import option, parse_options
from tocom_core.schedule import arithmetic_ratio
from tocom_core.sources import ImageSource, open_source


@torch.inference_mode()
def predict(
    model: CompressedViT,
    loaded: LoadedModel,
    source: ImageSource,
    r: int | Sequence[int] = 0,
    batch_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Logits of all images of a data set at one degree.

    Returns:
        ``(N, C)`` float32 logits and ``(N,)`` int64 labels (-1 where there is none), on the CPU.
    """
    device = next(model.parameters()).device
    model.eval()
    logits, labels = [], []
    for images, targets in evaluation_batches(source, loaded.transform, batch_size):
        dtype = next(model.parameters()).dtype
        out = model(loaded.normalize(images.to(device), dtype), r)
        logits.append(out.float().cpu())
        labels.append(targets)
    return torch.cat(logits), torch.cat(labels)


def top1(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose highest logit is the right class."""
    return float((logits.argmax(dim=-1) == labels).float().mean())


def kl_divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """``KL(reference ‖ logits)`` of each image's classes: ``(N, C)`` to ``(N,)``, in nats."""
    log_p, log_q = reference.log_softmax(dim=-1), logits.log_softmax(dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def as_list(self) -> list[float]:
        """``[mean, low, high]``, for JSON."""
        return [self.mean, self.low, self.high]


def paired_bootstrap(difference: Tensor, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of per-image differences with its percentile interval over resampled images.

    Args:
        difference: ``(N,)`` figure of one variant minus that of the other, image by image.
        resamples: bootstrap samples.
        seed: of the resampling.
    """
    values = difference.double().numpy()
    generator = np.random.default_rng(seed)
    means = np.array(
        [values[generator.integers(0, len(values), len(values))].mean() for _ in range(resamples)]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of ``tocom evaluate``."""

    model: str = option("default", help="default, a timm name, or a checkpoint")
    architecture: str | None = option(None, help="timm name, for a checkpoint that does not say it")
    bank: str = option("auto", help="a bank file, none, or auto: the one beside the model")
    data: str = option(help="labelled images: folder, parquet, or hub:owner/name")
    split: str | None = option("test", help="only parquet files whose name holds this")
    image_column: str = option("image", help="parquet column of the images")
    label_column: str = option("label", help="parquet column of the class indices")
    r_target: tuple[int, ...] = option((0, 4, 8, 12, 16), help="degrees to evaluate")
    scaling: float | None = option(None, help="factor on the deltas; default: the bank's own")
    prop_attn: bool | None = option(
        None, help="proportional attention; default: as the bank was trained, or on"
    )
    batch_size: int = option(64, help="images per forward pass")
    device: str = option("auto", help="cpu, cuda, cuda:1 …; auto takes a GPU if there is one")
    threads: int = option(0, help="CPU threads; 0 leaves it to PyTorch")
    output: Path | None = option(None, help="also write evaluation.json into this folder")
    store: bool = option(False, help="write the table into the model file's header for the server")


def evaluate(options: EvaluateOptions) -> dict[str, Any]:
    """Accuracy at each degree, without and with the bank, on the same images.

    Returns:
        a table: ``rows`` with ``r``, ``bank``, ``top1``, ``top5``, ``agreement`` with the model at
        its own degree, mean ``kl`` to it, ``arithmetic_ratio``; rows with the bank also have
        ``gain`` in top-1 and ``kl_change`` over plain merging, each ``[mean, low, high]`` (95 %,
        paired bootstrap over images).
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    loaded = load_model(options.model, architecture=options.architecture)
    source = open_source(options.data, options.split, options.image_column, options.label_column)
    path = find_bank(options.model, options.bank)
    bank = None if path is None else Bank.load(path)
    method = bank.method if bank else "merge"
    prop_attn = options.prop_attn
    if prop_attn is None:
        prop_attn = bank.prop_attn if bank else True
    device = pick_device(options.device)
    model = CompressedViT(loaded.vit.to(device), method, prop_attn)
    merger = bank and WeightMerger(
        model, bank, loaded.r_source, options.scaling, trained_from=loaded.trained_from
    )
    run = partial(predict, model, loaded, source, batch_size=options.batch_size)
    reference, labels = run(loaded.r_source)
    if (labels < 0).any():
        raise DataError("evaluation needs a label for every image; name the label column")
    rows = []
    for r in tqdm(options.r_target, unit="degree"):
        plain = reference if r == loaded.r_source else run(r)[0]
        row: dict[str, Any] = {
            "r": r,
            "bank": False,
            "arithmetic_ratio": arithmetic_ratio(model, r),
        }
        rows.append({**row, **_figures(plain, reference, labels)})
        if merger and r <= merger.num_groups:
            merger.set_target(r)
            served = run(r)[0] if r != loaded.r_source else reference
            merger.set_target(loaded.r_source)
            compared = _comparison(served, plain, reference, labels)
            rows.append({**row, "bank": True, **_figures(served, reference, labels), **compared})
    return {"model": loaded.name, "images": len(labels), "r_source": loaded.r_source, "rows": rows}


def _figures(logits: Tensor, reference: Tensor, labels: Tensor) -> dict[str, float]:
    top5 = logits.topk(min(5, logits.shape[1]), dim=-1).indices
    return {
        "top1": top1(logits, labels),
        "top5": float((top5 == labels.unsqueeze(1)).any(dim=1).float().mean()),
        "agreement": float((logits.argmax(-1) == reference.argmax(-1)).float().mean()),
        "kl": float(kl_divergence(reference, logits).mean()),
    }


def _comparison(
    served: Tensor, plain: Tensor, reference: Tensor, labels: Tensor
) -> dict[str, list[float]]:
    """Gain of the bank over plain merging, image by image."""
    right, plain_right = served.argmax(-1) == labels, plain.argmax(-1) == labels
    change = kl_divergence(reference, served) - kl_divergence(reference, plain)
    return {
        "gain": paired_bootstrap(right.double() - plain_right.double()).as_list(),
        "kl_change": paired_bootstrap(change).as_list(),
    }


def as_markdown(table: Mapping[str, Any]) -> str:
    """The table for people: one line per degree, plain merging beside the bank."""
    lines = [
        "| r | arithmetic | top-1 plain | top-1 bank | gain (95 %) | KL plain | KL bank |",
        "|---|---|---|---|---|---|---|",
    ]
    banked = {row["r"]: row for row in table["rows"] if row["bank"]}
    for row in (row for row in table["rows"] if not row["bank"]):
        cells = [f"{row['r']}", f"{row['arithmetic_ratio']:.2f} ×", f"{row['top1']:.2%}"]
        other = banked.get(row["r"])
        if other:
            mean, low, high = (100 * value for value in other["gain"])
            gain = f"{mean:+.2f} ({low:+.2f} … {high:+.2f})"
            cells += [f"{other['top1']:.2%}", gain, f"{row['kl']:.4f}", f"{other['kl']:.4f}"]
        else:
            cells += ["", "", f"{row['kl']:.4f}", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """``tocom evaluate``."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse_options(EvaluateOptions, argv, "tocom evaluate", __doc__ or "")
    try:
        table = evaluate(options)
        if options.store:
            path = default_model_path() if options.model == "default" else Path(options.model)
            store_evaluation(path, table)
    except TocomError as error:
        print(f"tocom evaluate: {error}", file=sys.stderr)
        return 1
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "evaluation.json").write_text(json.dumps(table, indent=2) + "\n")
    print(as_markdown(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())

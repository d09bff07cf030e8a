"""What ``tocom train`` can be told."""

from dataclasses import dataclass
from pathlib import Path

from tocom_core.errors import TrainingError
from tocom_core.loop_options import LoopOptions, within
from tocom_core.options import option
from tocom_core.schedule import Method
from tocom_core.self_distillation import LossName


@dataclass(frozen=True, kw_only=True)
class DistillOptions(LoopOptions):
    """Options of ``tocom train``."""

    data: tuple[str, ...] = option(
        help="folders of images, parquet files, WebDataset shards (train-{000..010}.tar), "
        "hub:owner/name; PLACE@2000 takes at most 2000 of a place; several make one pool"
    )
    split: str | None = option(
        None, help="files with this word in their path, or the sub-folder of this name"
    )
    image_column: str = option("image", help="parquet column, or suffix in a shard, of the images")
    label_column: str = option("label", help="likewise of the labels (for cross-entropy only)")
    model: str = option(help="the backbone: default, a timm name, or a checkpoint")
    architecture: str | None = option(None, help="timm name, for a checkpoint that does not say it")
    init_bank: Path | None = option(
        None,
        help="a bank to go on from, instead of an untrained one; with a larger --num-groups its "
        "own groups stay as they are, and only the new ones learn",
    )
    num_groups: int = option(16, help="K, the highest degree that is compensated")
    rank: int = option(2, help="h, rank of each group")
    shared: bool = option(False, help="one group for all pairs instead of K (ablation)")
    inversion: bool = option(True, help="off: a second set of groups for lower degrees (ablation)")
    scaling: float = option(0.1, help="s, the factor on every delta")
    method: Method = option("merge", help="how tokens are removed")
    prop_attn: bool = option(True, help="proportional attention")
    loss: LossName = option(
        "auto",
        help="auto: kl to soft targets, l1 between final features for a backbone without a head; "
        "cross-entropy needs labels (ablation)",
    )
    temperature: float = option(1.0, help="of the soft targets")
    anchor_share: float = option(
        0.5, help="share of the pairs that start at the model's own degree; 0: all are uniform"
    )
    batch_size: int = option(16, help="images per forward pass and process")
    accumulate: int = option(
        2, help="forward passes, each with a pair of degrees of its own, that make one step"
    )
    lr: float = option(2e-3, help="peak learning rate of AdamW")
    adapter_dropout: float = option(0.0, help="dropout between A and B")
    drop_path: float = option(0.0, help="stochastic depth of the student")
    min_scale: float = option(0.35, help="smallest area of a random crop")
    color_jitter: float = option(0.4, help="strength of colour jitter")
    auto_augment: str | None = option(None, help="timm policy, such as rand-m9-mstd0.5-inc1")
    erasing: float = option(0.0, help="probability of random erasing")
    mixup: float = option(0.0, help="mixup alpha")
    cutmix: float = option(0.0, help="cutmix alpha")
    val_images: int = option(256, help="images held out for the validation; 0 for none")

    def check(self) -> None:
        """Refuse values that no run can have, before anything is read.

        Raises:
            TrainingError: which one, and what it may be.
        """
        super().check()
        within(self, "val_images", 0)
        within(self, "temperature", 1e-3)
        for name in ("anchor_share", "adapter_dropout", "drop_path", "erasing", "min_scale"):
            within(self, name, 0, 1)
        for name in ("color_jitter", "mixup", "cutmix"):
            within(self, name, 0)
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise TrainingError(
                f"--batch-size {self.batch_size} with mixup or cutmix, which pair images up; use "
                "an even number"
            )

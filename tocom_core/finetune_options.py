"""Options of ``tocom finetune``, and which of them go together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import timm

from tocom_core import architectures as _architectures  # noqa: F401 - registers with timm
from tocom_core.adaptformer import AdapterConfig
from tocom_core.errors import TrainingError
from tocom_core.loop_options import LoopOptions, within
from tocom_core.options import option
from tocom_core.supervision import Tuning


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(LoopOptions):
    """Options of ``tocom finetune``."""

    data: str = option(
        help="labelled images: a folder (one sub-folder per class), parquet files, WebDataset "
        "shards (.tar; several by braces: train-{000..010}.tar), or hub:owner/name"
    )
    split: str = option(
        "train",
        help="part to train on: the sub-folder of this name, or the parquet files or shards with "
        "this word in their path; all images where there are no parts",
    )
    train_images: int = option(0, help="train on so many, spread over the classes; 0: all")
    val_images: int = option(
        0, help="training images held out where something is chosen by them; 0: a tenth"
    )
    test_data: str | None = option(
        None, help="data to report on, which chooses nothing; default: the same place"
    )
    test_split: str = option("test", help="likewise, by this word in the name")
    test_images: int = option(0, help="report on so many, spread over the classes; 0: all")
    image_column: str = option("image", help="parquet column of the images")
    label_column: str = option("label", help="parquet column of the class indices")
    model: str = option(help="timm name, or a checkpoint to start from")
    architecture: str | None = option(None, help="timm name, for a checkpoint that does not say it")
    pretrained: bool = option(False, help="for a timm name: start from its hub weights")
    img_size: int | None = option(
        None, help="side of the input in pixels; position embeddings are resampled"
    )
    r_source: int = option(0, help="tokens merged per layer while training")
    prop_attn: bool = option(True, help="proportional attention")
    tuning: Tuning = option("full", help="what learns: all, adapters and head, or the head alone")
    bottleneck: int = option(32, help="width of the adapters")
    adapter_scale: tuple[float, ...] = option(
        (0.01, 0.1, 1.0, 10.0, 100.0),
        help="factor on the adapters' output; of several the best is searched on held-out images",
    )
    search_epochs: float | None = option(
        None, help="epochs of each candidate; default: a tenth of --epochs, at least one"
    )
    select: Literal["last", "best"] = option(
        "last", help="weights to keep: the last, or the best by top-1 on held-out training images"
    )
    drop_path: float = option(0.0, help="stochastic depth rate")
    smoothing: float = option(0.1, help="label smoothing")
    mixup: float = option(0.0, help="mixup alpha")
    cutmix: float = option(0.0, help="cutmix alpha")
    min_scale: float = option(0.5, help="smallest area of a random crop")
    color_jitter: float = option(0.2, help="strength of colour jitter")
    auto_augment: str | None = option(None, help="timm policy, such as rand-m9-mstd0.5-inc1")
    erasing: float = option(0.0, help="share of images with a rectangle of noise")
    store_dtype: Literal["float32", "float16", "bfloat16"] = option(
        "float16", help="type of the stored weights"
    )

    @property
    def from_scratch(self) -> bool:
        """Whether the weights start at random."""
        named = timm.is_model(self.model.split(".")[0]) and not Path(self.model).is_file()
        return named and not self.pretrained

    @property
    def searches(self) -> bool:
        """Whether the scale of the adapters is to be found."""
        return self.tuning == "adaptformer" and len(self.adapter_scale) > 1

    def check(self) -> None:
        """Refuse options out of range or against each other, before anything is read.

        Raises:
            TrainingError: which ones, and what to do.
        """
        super().check()
        self._check_ranges()
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise TrainingError(
                f"--batch-size {self.batch_size} with mixup or cutmix, which pair images up; "
                "use an even number"
            )
        if self.tuning != "full" and self.from_scratch:
            raise TrainingError(
                f"--tuning {self.tuning} leaves the backbone as it is, and that of "
                f"{self.model} would be random; give a checkpoint, or --pretrained"
            )
        if self.tuning == "adaptformer":
            try:
                for scale in self.adapter_scale:
                    AdapterConfig(self.bottleneck, scale)
            except ValueError as error:
                raise TrainingError(f"no such adapters: {error}") from error

    def _check_ranges(self) -> None:
        for name in ("train_images", "val_images", "test_images", "r_source"):
            within(self, name, 0)
        for name in ("mixup", "cutmix", "color_jitter"):
            within(self, name, 0)
        for name in ("drop_path", "smoothing", "min_scale", "erasing"):
            within(self, name, 0, 1)
        if self.img_size is not None:
            within(self, "img_size", 1)
        if self.search_epochs is not None and not self.search_epochs > 0:
            raise TrainingError(f"--search-epochs {self.search_epochs} must be above 0")

"""The only definition of the server's configuration.

Each field of `Settings` is at once a command line flag (`--max-batch-size`), an environment
variable (`TOCOM_MAX_BATCH_SIZE`) and a key of the YAML file (`max_batch_size`); its description is
the help text. `settings_sources` reads them.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.access_settings import AccessSettings

ENV_PREFIX = "TOCOM_"


ONLY_VARIABLES = frozenset({"api_keys"})
"""Settings that are secrets: other users can read a command line, and often a settings file."""


class Settings(AccessSettings, BaseSettings):
    """How the server runs; immutable after start-up."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=False,
    )

    model: str = Field(
        "default",
        min_length=1,
        description="'default' (the shipped model), a timm model name, hf-hub:owner/name"
        "[@revision], or a path to a .safetensors or .pth file or to a folder of timm's or "
        "transformers' (docs/models.md).",
    )
    architecture: str | None = Field(
        None, description="timm architecture of a checkpoint file that does not name its own."
    )
    labels: Path | None = Field(None, description="File with one class name per line.")
    bank: str = Field(
        "auto",
        min_length=1,
        description="Compensator bank: 'auto' (the default model's own, or bank.safetensors "
        "beside the model file, or the one shipped for its backbone), 'none', a file, a folder, or "
        "hf-hub:owner/name[@revision].",
    )
    r_source: int | None = Field(
        None, ge=0, description="Degree the model was fine-tuned at; unset: the checkpoint's, or 0."
    )
    scaling: float | None = Field(
        None, gt=0, le=10, description="Scale of the bank's deltas; unset: the bank's own."
    )
    method: Literal["merge", "prune"] = Field("merge", description="How tokens are reduced.")
    prop_attn: bool | None = Field(
        None,
        description="Proportional attention; unset: as the model was fine-tuned, or the bank "
        "trained, or on.",
    )

    models_dir: Path | None = Field(
        None,
        description="Folder of the models, banks and labels that POST /models/reload may name; "
        "unset: it can only read again what is configured.",
    )
    canary_agreement: float = Field(
        0.5,
        ge=0,
        le=1,
        description="A reload is undone unless the new model gives this share of the canary images "
        "the same class as the present one, where both have the same classes.",
    )

    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto, cpu, mps, cuda or cuda:N.",
    )
    devices: str | None = Field(
        None,
        pattern=r"^(all|(cpu|cuda:\d+)(,(cpu|cuda:\d+))*)$",
        description="Several devices behind one queue, in place of `device`: cuda:0,cuda:1 or all "
        "(every GPU). They should be alike.",
    )
    dtype: Literal["float32", "tf32", "bfloat16", "float16"] = Field(
        "float32",
        description="Type of weights and activations; tf32 (CUDA only): float32 with the inputs of "
        "products rounded to 10 bits.",
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="CPU threads of the model; 0: PyTorch's choice, at most one per usable core.",
    )
    backend: Literal["auto", "eager", "compiled", "graphs", "onnx"] = Field(
        "auto",
        description="What computes a batch: eager (PyTorch), compiled (torch.compile, slow to "
        "start), graphs (PyTorch as CUDA graphs), onnx (ONNX Runtime, float32 on a CPU, pip "
        "install 'tocom-serve[onnx]'), or auto: graphs on CUDA; on a CPU eager or onnx, as a "
        "matching profile was measured, else the faster one.",
    )
    max_graphs: int = Field(
        256,
        ge=0,
        le=100_000,
        description="Most CUDA graphs, one per degree and batch bucket; what is beyond runs "
        "eagerly.",
    )
    lanes: int = Field(
        0,
        ge=0,
        le=64,
        description="Parts of a batch that run side by side on a CPU, sharing the threads; 0: one "
        "per thread, at most 4.",
    )

    switch_cache_mb: int = Field(
        256,
        ge=0,
        le=1_000_000,
        description="MiB on the model's device for the weights of degrees that were visited, so "
        "that switching back is a copy; 0 keeps none.",
    )
    attention: Literal["auto", "bias", "channels", "products", "flex"] = Field(
        "auto",
        description="How sizes of merged tokens enter PyTorch's attention: bias (auto), channels "
        "(flash attention), products, flex (CUDA, compiled at first use). Not for onnx.",
    )

    max_batch_size: int = Field(32, ge=1, le=4096, description="Most images in one batch.")
    max_queue_delay_ms: float = Field(
        2.0,
        ge=0,
        le=10_000,
        description="How long an idle engine waits for a fuller batch, at most a tenth of the SLO.",
    )
    queue_size: int = Field(
        256, ge=1, le=1_000_000, description="Most images that wait or decode; beyond it: 429."
    )
    slo_ms: float = Field(
        250.0,
        gt=0,
        le=600_000,
        description="Latency promised to clients, from a request's last byte to its answer; the "
        "controller keeps to it.",
    )
    default_deadline_ms: float | None = Field(
        None, gt=0, le=3_600_000, description="Deadline of requests that name none; unset: none."
    )

    shed_late: bool = Field(
        True,
        description="Refuse (429) what cannot be answered within the SLO, or its own deadline, at "
        "any allowed degree; off: serve it late.",
    )

    policy: Literal["demand", "static", "threshold", "slackfit", "aimd"] = Field(
        "demand",
        description="What picks r and the batch size: the demand of the waiting and expected "
        "requests, a fixed degree (static_r), or one of the peers' rules.",
    )
    mode: Literal["auto", "shadow"] = Field(
        "auto",
        description="shadow: the policy decides and its decisions are logged and exported, but r "
        "stays where it is.",
    )
    static_r: int | None = Field(
        None, ge=0, description="Degree of the static policy; unset: r_source."
    )
    max_r: int | None = Field(
        None, ge=0, description="The controller never goes above it; unset: the bank's or model's."
    )
    steady_r: int | None = Field(
        None,
        ge=0,
        description="Degree that you are willing to run in steady state, for tocom_capacity_demand "
        "(what an autoscaler goes by); between degrees that are offered, the next lower one; "
        "unset: the lowest.",
    )
    min_accuracy: float | None = Field(
        None,
        ge=0,
        le=1,
        description="No automatic choice goes below this expected accuracy (0 to 1).",
    )
    dwell_s: float | None = Field(
        None,
        ge=0,
        le=3600,
        description="How long load must be low before r falls; unset: 0 for demand, 1 else",
    )
    profile: str = Field(
        "auto",
        min_length=1,
        description="Measured latency and expected accuracy per degree (tocom profile): 'auto' "
        "(profile.json beside the model or its bank), 'none', or a path; a path that does not "
        "exist is written once all is measured.",
    )
    idle_profiling: bool = Field(
        True, description="Measure what is not measured yet while no request waits."
    )
    live_share: float = Field(
        0.005,
        ge=0,
        le=1,
        description="Share of served images that are run again at r_source while no request waits, "
        "to measure how often the answers agree; 0 turns it off.",
    )
    live_accuracy: bool = Field(
        False,
        description="Let the measured agreement correct the expected accuracy that min_accuracy is "
        "compared with.",
    )

    max_image_bytes: int = Field(20_000_000, ge=1, description="Most bytes of one image.")
    max_image_pixels: int = Field(50_000_000, ge=1, description="Most pixels of one image.")
    max_files: int = Field(32, ge=1, le=10_000, description="Most images in one request.")
    max_body_bytes: int = Field(64_000_000, ge=1, description="Most bytes of one request.")
    decode_workers: int = Field(
        0, ge=0, le=256, description="Threads that decode images; 0: one per usable core."
    )

    drain_timeout_s: float = Field(
        30.0, ge=0, le=3600, description="Longest time to finish admitted work at shutdown."
    )
    log_level: Literal["debug", "info", "warning", "error", "critical"] = Field(
        "info", description="Least severe messages that are logged."
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="Form of the log; auto: text on a terminal, else JSON."
    )
    log_share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the answered and shed requests that get a line in the log; all "
        "others do, at their level.",
    )
    traces: Literal["none", "otlp"] = Field(
        "none",
        description="Where traces go: nowhere, or to an OpenTelemetry collector (pip install "
        "'tocom-serve[otel]'), set up by the standard OTEL_* variables.",
    )

    @property
    def max_queue_delay_s(self) -> float:
        """`max_queue_delay_ms` in seconds."""
        return self.max_queue_delay_ms / 1000

    @property
    def slo_s(self) -> float:
        """`slo_ms` in seconds."""
        return self.slo_ms / 1000

    @property
    def default_deadline_s(self) -> float | None:
        """`default_deadline_ms` in seconds."""
        return None if self.default_deadline_ms is None else self.default_deadline_ms / 1000

    @property
    def max_batch_s(self) -> float:
        """Longest time one batch should take: a request may have to wait for one and ride one."""
        return self.slo_s / 2

    @field_validator("*", mode="before")
    @classmethod
    def _plain_values(cls, value: object, info: ValidationInfo) -> object:
        """Read 'none' as unset where unset is the default; do not take yes/no for a number."""
        field = cls.model_fields[info.field_name or ""]
        if field.default is None and isinstance(value, str) and value.lower() in ("none", "null"):
            return None
        if isinstance(value, bool) and field.annotation not in (bool, bool | None):
            raise ValueError("Input should not be a boolean")
        return value

    @property
    def device_names(self) -> tuple[str, ...]:
        """What `device` or `devices` name; "all" stands for every GPU."""
        return (self.device,) if self.devices is None else tuple(self.devices.split(","))

    @field_validator(
        *("dtype", "log_level", "log_format", "policy", "mode", "method", "device", "devices"),
        "traces",
        mode="before",
    )
    @classmethod
    def _any_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _devices_are_told_once(self) -> Self:
        if self.devices is None:
            return self
        if self.device not in ("auto", self.devices):
            raise ValueError(
                f"device={self.device!r} and devices={self.devices!r} contradict each other: "
                "give one of them"
            )
        gpus = [name for name in self.device_names if name != "cpu"]
        if len(set(gpus)) < len(gpus):
            raise ValueError(f"devices={self.devices!r} names a GPU twice: name each once")
        return self

    @model_validator(mode="after")
    def _static_degree_fits(self) -> Self:
        if self.static_r is None:
            return self
        if self.policy != "static":
            raise ValueError(
                f"static_r={self.static_r} has no effect with policy={self.policy!r}: "
                "set policy to 'static' or leave static_r unset"
            )
        if self.max_r is not None and self.static_r > self.max_r:
            raise ValueError(
                f"static_r={self.static_r} lies above max_r={self.max_r}: "
                "lower the one or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _steady_degree_fits(self) -> Self:
        if self.steady_r is not None and self.max_r is not None and self.steady_r > self.max_r:
            raise ValueError(
                f"steady_r={self.steady_r} lies above max_r={self.max_r}, which no automatic "
                "choice passes: lower the one or raise the other"
            )
        return self

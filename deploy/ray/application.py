"""The Serve application: how many replicas, on what, and when Ray adds some.

`deploy.ray.application:build` is the `import_path` of a Serve configuration (`serve.yaml` beside
this); its `args` are `FleetArguments`. A `deployments` section there overrides what is said here.
"""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve

from deploy.ray.capacity_policy import CapacityPolicy
from deploy.ray.replica import Classifier, Control
from deploy.ray.replica_settings import read_settings
from server.settings import Settings

UPSCALE_DELAY_S = 20.0
"""Compression takes a spike at once; a load that lasts so long gets replicas."""
DOWNSCALE_DELAY_S = 300.0
"""A replica costs a minute to start: it is kept until the load has been low for so long."""
LOOK_BACK_S = 15.0
"""Ray averages the demand over so long; replicas report every ten seconds."""
HEALTH_CHECK_S = 2.0
"""How often Ray looks for replicas that died; so long, and a start, lasts a lost one."""
TARGET_DEMAND = 0.8
"""What Kubernetes' HorizontalPodAutoscaler aims at too."""


QUIET = {"enable_access_log": False, "log_level": "WARNING"}
"""Ray's own log: a line for each request and each exchange with the control room is too much."""


class FleetArguments(BaseModel):
    """What a Serve configuration can say in `args`, and `python -m deploy.ray` as flags."""

    model_config = ConfigDict(extra="forbid")

    replicas: int = Field(1, ge=1, le=1000, description="Replicas, at least.")
    max_replicas: int | None = Field(
        None, ge=1, le=1000, description="Replicas at most, by load; unset: always `replicas`."
    )
    cpus: float = Field(
        1.0, gt=0, description="Cores of one replica: what Ray counts, and threads of the model."
    )
    gpus: float = Field(
        0.0, ge=0, description="GPUs of one replica; 0.5: two replicas share one, and its memory."
    )
    target_demand: float = Field(
        TARGET_DEMAND, gt=0, le=1, description="Load that each replica should have, 1.0: all."
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, description="Settings of the server: name to value."
    )

    @model_validator(mode="after")
    def _most_is_not_least(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas={self.max_replicas} lies below replicas={self.replicas}: raise the "
                "one or lower the other"
            )
        return self


def build(arguments: FleetArguments) -> Any:
    """The application that Ray Serve runs.

    Raises:
        SettingsError: the settings are wrong.
    """
    settings = read_settings(arguments.settings)
    control = serve.deployment(Control, **control_options()).bind()
    classifier = serve.deployment(
        serve.ingress()(Classifier), name="Classifier", **classifier_options(arguments, settings)
    )
    return classifier.bind(arguments.settings, control)


def control_options() -> dict[str, Any]:
    """How Ray runs the control room: once, beside the others, anew if it dies."""
    return {
        "name": "Control",
        "num_replicas": 1,
        "ray_actor_options": {"num_cpus": 0},
        "max_ongoing_requests": 10_000,  # each replica waits in one call
        "health_check_period_s": HEALTH_CHECK_S,
        "graceful_shutdown_timeout_s": 2.0,
        "logging_config": QUIET,
    }


def classifier_options(arguments: FleetArguments, settings: Settings) -> dict[str, Any]:
    """How Ray runs the replicas.

    Ray's own limit on what a replica holds lies above what the server can hold, so that the
    server's queue decides what is admitted, shed and refused, and with which `Retry-After`.
    """
    held = 2 * settings.queue_size + 4 * settings.max_batch_size
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
        "max_ongoing_requests": held,
        "max_queued_requests": held,
        "backpressure_config": {"status_code": 429, "retry_after_s": 1},
        "health_check_period_s": HEALTH_CHECK_S,
        "graceful_shutdown_wait_loop_s": 0.5,
        "graceful_shutdown_timeout_s": settings.drain_timeout_s + 5,
        "logging_config": QUIET,
    }
    if arguments.max_replicas is None:
        return options | {"num_replicas": arguments.replicas}
    policy = {
        "policy_function": f"{CapacityPolicy.__module__}:{CapacityPolicy.__name__}",
        "policy_kwargs": {"target": arguments.target_demand},
    }
    return options | {
        "autoscaling_config": {
            "min_replicas": arguments.replicas,
            "max_replicas": arguments.max_replicas,
            "upscale_delay_s": UPSCALE_DELAY_S,
            "downscale_delay_s": DOWNSCALE_DELAY_S,
            "look_back_period_s": LOOK_BACK_S,
            "policy": policy,
        }
    }

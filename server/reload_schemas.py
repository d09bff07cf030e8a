"""What a reload of the model can be asked, and what is told of it."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Degree = Annotated[int, Field(ge=0)]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]
"""A file in `models_dir`, or timm's name of an architecture: no slash, colon or leading dot."""


class ReloadRequest(BaseModel):
    """Body of ``POST /models/reload``; what is left out stays, or comes with the model."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: Name | None = Field(
        None,
        description="A name in models_dir; `default`: the shipped model; `configured`: what the "
        "server was started with. Left out: the present one is read again.",
    )
    bank: Name | None = Field(
        None, description="A name in models_dir, `auto` or `none`, as the setting has them."
    )
    labels: Name | None = Field(None, description="A name in models_dir.")
    architecture: Name | None = Field(
        None, description="timm architecture of a file that does not name its own."
    )
    r_source: Degree | None = Field(None, description="Degree the model was fine-tuned at.")
    scaling: float | None = Field(None, gt=0, le=10, description="Scale of the bank's deltas.")
    min_agreement: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the canary images that must get the same class as from the present "
        "model, if the classes are the same; left out: the setting canary_agreement.",
    )
    wait_s: float = Field(
        0,
        ge=0,
        le=600,
        description="Answer when the reload has ended, or after this many seconds; 0: at once.",
    )


ReloadStage = Literal["loading", "warming_up", "trying", "done", "failed"]


class ReloadStatus(BaseModel):
    """A reload: how far it is, or how it ended."""

    model_config = ConfigDict(frozen=True)

    state: ReloadStage = Field(
        description="`done`: the new model is served; `failed`: the old one still is."
    )
    model: str = Field(description="What is loaded, as the setting would say it.")
    bank: str
    started_at: datetime
    seconds: float | None = Field(None, description="How long it took; null while it goes on.")
    images: int | None = Field(None, description="That the new model was tried with.")
    recent: int | None = Field(None, description="Those of them that had been served before.")
    agreement: float | None = Field(
        None, description="Share with the same class as before; null where it was not compared."
    )
    detail: str | None = Field(None, description="Why it failed.")

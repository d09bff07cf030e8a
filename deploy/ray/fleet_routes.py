"""What differs from a single server's API when there are several replicas.

These stand in place of the server's own handlers of the same paths, behind the same door:
`PUT /compression` asks all replicas, `GET /compression` tells of all, `/metrics` has the metrics of
all, and a reload is refused, for it would change the model of one replica only.
"""

from typing import Annotated, Literal, cast

from fastapi import APIRouter, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.routing import BaseRoute

from deploy.ray.control_room import Overview
from deploy.ray.exposition import CONTENT_TYPE, merge
from deploy.ray.fleet_link import FleetLink, FleetUnreachable
from server import routes
from server.errors import BadParameter, NotReady, ServeError
from server.problems import documented
from server.schemas import CompressionQuery, CompressionStatus

router = APIRouter()


class ReloadByDeployment(ServeError):
    """Under Ray Serve a model is changed by a deployment, one replica after the other."""

    status = 409
    type = "/problems/reload-by-deployment"
    title = "Reload by deployment"

    def __init__(self) -> None:
        super().__init__(
            "This is one of several replicas of Ray Serve, and a reload would change the model of "
            "this one only. Change `model` or `bank` in the settings of the Serve application and "
            "run `serve deploy` again: Ray replaces the replicas one after the other."
        )


class Asked(BaseModel):
    """What was asked of all replicas, and holds for those that start later too."""

    mode: Literal["auto", "pinned", "shadow"] | None = Field(
        description="null: never asked for; the settings decide."
    )
    r: int | None = Field(description="The degree that is pinned, or held in shadow mode.")
    ttl_s: float | None = Field(description="Seconds until that ends by itself.")
    min_r: int | None
    max_r: int | None


class ReplicaCompression(BaseModel):
    """How one replica is."""

    replica: str
    mode: str
    r: int
    min_r: int
    max_r: int
    up_to_date: bool = Field(description="Whether it has what was asked last.")
    refused: str | None = Field(description="Why it cannot do what is asked; null: it does.")


class FleetCompression(CompressionStatus):
    """Answer of ``GET`` and ``PUT /compression``: one replica in full, and all of them in short."""

    replica: str = Field(description="Which replica answers; the fields above are its own.")
    asked: Asked | None = Field(description="null: nobody answers who knows.")
    replicas: list[ReplicaCompression] | None = Field(description="null: likewise.")


@router.get(
    "/compression",
    tags=["compression"],
    summary="What is asked of all replicas, and what each of them has",
    responses=documented(NotReady),
)
async def compression(request: Request) -> FleetCompression:
    """One replica as a single server would tell of itself, and beside it all of them."""
    return await _told(request, await _link(request).overview())


@router.put(
    "/compression",
    tags=["compression"],
    summary="Pin a degree, hand it back, watch the policy, or bound the controllers, on all",
    responses=documented(BadParameter, NotReady, FleetUnreachable),
)
async def set_compression(
    request: Request, query: Annotated[CompressionQuery, Query()]
) -> FleetCompression:
    """Asks all replicas, those that start later too; answers what `GET /compression` answers.

    A value that is refused (422) changes nothing. The answer waits until all replicas have taken
    it, two seconds at most; `up_to_date` tells of each.
    """
    return await _told(request, await _link(request).ask(query))


@router.post(
    "/models/reload",
    tags=["model"],
    summary="Refused under Ray Serve: deploy the application again",
    responses=documented(ReloadByDeployment),
)
async def reload() -> Response:
    """Says how a model is changed here."""
    raise ReloadByDeployment


@router.get(
    "/metrics",
    tags=["health"],
    summary="Prometheus metrics of all replicas",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **documented(FleetUnreachable),
    },
)
async def metrics(request: Request) -> Response:
    """Each replica's own metrics, told apart by the label `replica`."""
    pages = await _link(request).gather()
    page = merge(pages.told, pages.missing)
    return Response(page, headers={"Content-Type": CONTENT_TYPE})


def fleet_api() -> APIRouter:
    """The server's handlers, with these in the place of a single server's."""
    ours = set[tuple[str, str]]().union(*map(_answers, router.routes))
    api = APIRouter()
    api.routes = [route for route in routes.router.routes if not _answers(route) & ours]
    api.routes += router.routes
    return api


def _answers(route: BaseRoute) -> set[tuple[str, str]]:
    """Path and method of what a route answers."""
    if not isinstance(route, APIRoute):
        return set()
    return {(route.path, method) for method in route.methods or ()}


async def _told(request: Request, overview: Overview | None) -> FleetCompression:
    status = await routes.compression(request)
    replica = _link(request).me
    if overview is None:
        return FleetCompression(**dict(status), replica=replica, asked=None, replicas=None)
    wish = overview.wish
    held = wish.held
    asked = Asked(
        mode=wish.mode,
        r=held and held.r,
        ttl_s=held and held.ttl_s(0.0),  # the wish is relative to now
        min_r=wish.min_r,
        max_r=wish.max_r,
    )
    replicas = [
        ReplicaCompression(
            replica=name,
            mode=report.mode,
            r=report.r,
            min_r=report.min_r,
            max_r=report.max_r,
            up_to_date=report.version >= wish.version,
            refused=report.refused,
        )
        for name, report in sorted(overview.replicas.items())
    ]
    return FleetCompression(**dict(status), replica=replica, asked=asked, replicas=replicas)


def _link(request: Request) -> FleetLink:
    return cast(FleetLink, request.app.state.link)

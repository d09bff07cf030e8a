"""The deployments of the Serve application: the replicas that classify, and the control room.

`Classifier` is the server, engine, queue, scheduler and controller, once per replica, on the share
of a machine that Ray gives it. `Control` is a `ControlRoom` in a process of its own, which Ray
watches and starts anew like any deployment.
"""

import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ray import get_runtime_context
from ray.serve import get_replica_context
from ray.util import get_node_ip_address

from deploy.ray.capacity_policy import DEMAND
from deploy.ray.control_room import ControlRoom, Order, Overview, Pages, Report
from deploy.ray.fleet_link import FleetLink
from deploy.ray.replica_settings import read_settings
from deploy.ray.wish import Wish
from server import logs
from server.schemas import CompressionQuery

if TYPE_CHECKING:
    from deploy.ray.fleet_app import FleetApplication

logger = logging.getLogger(__name__)


class Control:
    """A control room that replicas call through Ray."""

    def __init__(self) -> None:
        keep_to_loopback()
        self._room = ControlRoom()

    async def exchange(self, replica: str, wish: Wish, report: Report, ticket: int) -> Order:
        """See `ControlRoom`."""
        return await self._room.exchange(replica, wish, report, ticket)

    async def ask(self, query: dict[str, Any], known: Wish) -> Overview:
        """See `ControlRoom`."""
        return await self._room.ask(CompressionQuery.model_validate(query), known)

    async def overview(self) -> Overview:
        """See `ControlRoom`."""
        return self._room.overview()

    async def gather(self) -> Pages:
        """See `ControlRoom`."""
        return await self._room.gather()

    async def deliver(self, replica: str, ticket: int, page: bytes) -> None:
        """See `ControlRoom`."""
        self._room.deliver(replica, ticket, page)

    async def leave(self, replica: str) -> None:
        """See `ControlRoom`."""
        self._room.leave(replica)


class RoomOverRay:
    """The control room as a replica calls it.

    Args:
        handle: of the deployment `Control`.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def exchange(self, replica: str, wish: Wish, report: Report, ticket: int) -> Order:
        """See `ControlRoom`."""
        order: Order = await self._handle.exchange.remote(replica, wish, report, ticket)
        return order

    async def ask(self, query: CompressionQuery, known: Wish) -> Overview:
        """See `ControlRoom`."""
        asked = query.model_dump(exclude_none=True)
        overview: Overview = await self._handle.ask.remote(asked, known)
        return overview

    async def overview(self) -> Overview:
        """See `ControlRoom`."""
        overview: Overview = await self._handle.overview.remote()
        return overview

    async def gather(self) -> Pages:
        """See `ControlRoom`."""
        pages: Pages = await self._handle.gather.remote()
        return pages

    async def deliver(self, replica: str, ticket: int, page: bytes) -> None:
        """See `ControlRoom`."""
        await self._handle.deliver.remote(replica, ticket, page)

    async def leave(self, replica: str) -> None:
        """See `ControlRoom`."""
        await self._handle.leave.remote(replica)


class Classifier:
    """One replica of the server.

    Args:
        settings: name to value, as in the settings file; variables `TOCOM_*` of the replica's
            process count too.
        control: handle of the deployment `Control`.

    Raises:
        SettingsError: the settings are wrong.
        TocomError: the model or bank cannot be loaded.
    """

    def __init__(self, settings: Mapping[str, Any], control: Any) -> None:
        read = read_settings(settings)
        log_format = logs.configure(read.log_format, read.log_level)
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `serving` does, before PyTorch
        keep_to_loopback()
        _keep_to_gpu_share()
        # PyTorch takes seconds and most of a gigabyte, which neither the control room needs nor
        # who deploys, though both import this module.
        from deploy.ray.fleet_app import FleetApplication
        from deploy.ray.fleet_routes import fleet_api
        from server.app import Application, create_app
        from server.serving import observed

        app = create_app(read, api=fleet_api())
        assert isinstance(app, Application)
        service = app.state.service
        self._service = service
        ending = ExitStack()
        ending.enter_context(observed(service, read, log_format))
        me = str(get_replica_context().replica_id.unique_id)
        link = FleetLink(
            *(me, RoomOverRay(control)),
            controller=lambda: service.core.controller,
            page=lambda: service.metrics.render()[0],
        )
        self._app = FleetApplication(app, link, on_end=ending.close)

    def __serve_build_asgi_app__(self) -> "FleetApplication":
        """What answers this replica's requests; Ray calls this after the constructor."""
        return self._app

    async def check_health(self) -> None:
        """Raise why this replica should be replaced, if it should; called by Ray.

        Raises:
            ServeError: its device is lost, or its batches fail one after the other.
        """
        if not self._service.draining:
            self._service.check_ready()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `CapacityPolicy` decides by; called by Ray."""
        return {DEMAND: self._service.capacity_demand() or 0.0}


def keep_to_loopback() -> None:
    """Where Ray is on loopback, keep the port there too that Ray Serve opens for each replica.

    Other replicas may call through it, unpickling what they are sent, and Ray Serve (2.60) opens it
    on all addresses whatever Ray's own is. This happens before it does.
    """
    if not get_node_ip_address().startswith("127."):
        return
    from ray.serve._private import replica

    open_port = replica.add_port_to_grpc_server

    def open_on_loopback(server: Any, address: str) -> Any:
        return open_port(server, address.replace("[::]", "127.0.0.1"))

    replica.add_port_to_grpc_server = open_on_loopback


def _keep_to_gpu_share() -> None:
    """Hold PyTorch to its part of a GPU's memory: Ray counts shares, but does not enforce them."""
    share = float(get_runtime_context().get_assigned_resources().get("GPU", 0))
    if not 0 < share < 1:
        return
    import torch

    torch.cuda.set_per_process_memory_fraction(share)
    logger.info("keeping to %.0f %% of the GPU's memory", 100 * share)

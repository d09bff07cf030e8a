"""`AsyncClient`: the server's API for programs with an asyncio event loop."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Sized
from types import TracebackType
from typing import Self, TypeVar, assert_never

import httpx

from tocom_client import endpoints
from tocom_client.classifying import (
    Item,
    OnProgress,
    Outcome,
    Tally,
    check_sizes,
    classify_group,
    classify_one,
    grouped_as_they_come,
)
from tocom_client.conversation import (
    Done,
    Encode,
    Send,
    Sleep,
    Step,
    Talk,
    Terms,
    converse,
    is_ready,
    until_ready,
)
from tocom_client.endpoints import Priority, Wishes
from tocom_client.errors import InvalidImage
from tocom_client.images import ImageSource, encode
from tocom_client.results import Classification, CompressionStatus, ModelInfo, ReloadStatus
from tocom_client.retrying import PATIENT, RetryBudget, RetryPolicy, Timer
from tocom_client.side_by_side import as_tasks
from tocom_client.transport import Address, Verify, answer_of, built, limits, loss_from
from tocom_client.wire import Answer, Call, Lost, Request

T = TypeVar("T")


class AsyncClient:
    """A server, as a program with an event loop sees it; tasks may share a client.

    Arguments, methods and errors are those of `Client`; methods are awaited, `classify_many` is an
    asynchronous generator, and `aclose` takes `close`'s place.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        verify: Verify = True,
        timeout_s: float = 60.0,
        retry: RetryPolicy | None = None,
        budget: RetryBudget | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._address = Address.of(base_url, api_key)
        self._terms = Terms(
            retry or RetryPolicy(), budget or RetryBudget(), timeout_s, clock=clock, draw=draw
        )
        self._sleep = sleep
        self._http = httpx.AsyncClient(
            base_url=self._address.url,
            headers=self._address.headers,
            verify=verify,
            limits=limits(),
            trust_env=self._address.behind_proxies,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"AsyncClient({self._address.url!r})"

    async def aclose(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    # --- Images ---------------------------------------------------------------------------------

    async def classify(
        self,
        image: ImageSource,
        *,
        top_k: int = 5,
        deadline_s: float | None = None,
        max_r: int | None = None,
        priority: Priority = "normal",
        request_id: str | None = None,
    ) -> Classification:
        """What the model sees in one image; see `Client.classify`."""
        wishes = Wishes(top_k, deadline_s, max_r, priority)
        return await self._run(classify_one(image, wishes, self._terms, request_id))

    def classify_many(
        self,
        images: Iterable[ImageSource] | AsyncIterable[ImageSource],
        *,
        concurrency: int = 4,
        per_request: int = 4,
        top_k: int = 5,
        deadline_s: float | None = None,
        max_r: int | None = None,
        priority: Priority = "normal",
        retry: RetryPolicy = PATIENT,
        on_progress: OnProgress | None = None,
    ) -> AsyncGenerator[Outcome, None]:
        """Many images, in their order; see `Client.classify_many`.

        The images may come from an asynchronous source, and each request is a task. Who leaves the
        loop early should close the generator (`contextlib.aclosing`), which cancels what is under
        way; otherwise that happens when the generator is collected.
        """
        check_sizes(concurrency, per_request)
        wishes = Wishes(top_k, deadline_s, max_r, priority)
        tally = Tally(len(images) if isinstance(images, Sized) else None, on_progress)
        groups, terms = grouped_as_they_come(images, per_request), self._terms.patient(retry)

        async def outcomes_of(group: list[Item]) -> list[Outcome]:
            return await self._run(classify_group(group, wishes, terms))

        return as_tasks(groups, outcomes_of, concurrency, tally)

    # --- The model and the dial -----------------------------------------------------------------

    async def model(self) -> ModelInfo:
        """What is served."""
        return await self._call(endpoints.model_call())

    async def compression(self) -> CompressionStatus:
        """What is served."""
        return await self._call(endpoints.compression_call())

    async def pin(self, r: int, *, ttl_s: float | None = None) -> CompressionStatus:
        """Hold a degree, whatever the load; with `ttl_s` only for so many seconds.

        Raises:
            InvalidParameter: the server does not have that degree.
        """
        return await self._call(endpoints.dial_call(r=r, ttl_s=ttl_s))

    async def auto(self) -> CompressionStatus:
        """Hold a degree, whatever the load; see `Client.pin`."""
        return await self._call(endpoints.dial_call(mode="auto"))

    async def shadow(
        self, r: int | None = None, *, ttl_s: float | None = None
    ) -> CompressionStatus:
        """Hold a degree (None: the present one) and watch what the policy would do."""
        return await self._call(endpoints.dial_call(mode="shadow", r=r, ttl_s=ttl_s))

    async def bound(self, min_r: int | None = None, max_r: int | None = None) -> CompressionStatus:
        """Bound what the controller may choose; None leaves that bound as it is.

        Raises:
            InvalidParameter: no degree would be left, or neither bound was given.
        """
        return await self._call(endpoints.dial_call(min_r=min_r, max_r=max_r))

    async def reload(
        self,
        model: str | None = None,
        *,
        bank: str | None = None,
        labels: str | None = None,
        architecture: str | None = None,
        r_source: int | None = None,
        scaling: float | None = None,
        min_agreement: float | None = None,
        wait_s: float = 0.0,
    ) -> ReloadStatus:
        """Serve another model or bank; see `Client.reload`."""
        changes = {"model": model, "bank": bank, "labels": labels, "architecture": architecture}
        numbers = {"r_source": r_source, "scaling": scaling, "min_agreement": min_agreement}
        return await self._call(endpoints.reload_call(wait_s, **changes, **numbers))

    # --- Its state ------------------------------------------------------------------------------

    async def ready(self) -> bool:
        """Whether it takes requests now; one that cannot be reached does not."""
        return await self._run(is_ready(self._terms))

    async def wait_until_ready(self, timeout_s: float = 120.0) -> None:
        """Return once it takes requests.

        Raises:
            NotReady: it was there but not ready in time.
            ConnectionFailed: it was not there.
        """
        await self._run(until_ready(self._terms, timeout_s))

    async def metrics(self) -> str:
        """Return once it takes requests; see `Client.wait_until_ready`."""
        return await self._call(endpoints.metrics_call())

    # --- How it is done -------------------------------------------------------------------------

    async def _call(self, call: Call[T]) -> T:
        timer = Timer(self._terms.clock, None)
        return await self._run(converse(call, self._terms, timer, self._terms.new_id()))

    async def _run(self, talk: Talk[T]) -> T:
        """Do a conversation's steps until it has its result."""
        try:
            step = next(talk)
            while True:
                step = talk.send(await self._do(step))
        except StopIteration as end:
            result: T = end.value
            return result

    async def _do(self, step: Step) -> Done:
        match step:
            case Send(request):
                return await self._send(request)
            case Sleep(seconds):
                await self._sleep(seconds)
                return None
            case Encode(source):
                try:
                    if isinstance(source, bytes):
                        return encode(source)  # nothing to wait for, so no thread
                    return await asyncio.to_thread(encode, source)
                except InvalidImage as error:
                    return error
            case _:
                assert_never(step)

    async def _send(self, request: Request) -> Answer | Lost:
        try:
            async with asyncio.timeout(request.within_s):
                sent = built(self._http, request, self._terms.clock)
                return answer_of(await self._http.send(sent))
        except TimeoutError:
            return Lost("slow", f"the server did not answer within {request.within_s:g} s")
        except httpx.HTTPError as error:
            return loss_from(error)

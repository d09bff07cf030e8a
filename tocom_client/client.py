"""`Client`: the server's API for programs without an event loop."""

import random
import time
from collections.abc import Callable, Generator, Iterable, Sized
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
    grouped,
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
from tocom_client.side_by_side import on_threads
from tocom_client.transport import Address, Verify, answer_of, built, limits, loss_from
from tocom_client.wire import Answer, Call, Lost, Request

T = TypeVar("T")


class Client:
    """A server, as a program sees it; threads may share a client.

    Args:
        base_url: where it is; None: what `TOCOM_URL` says, else http://127.0.0.1:8000.
        api_key: None: what `TOCOM_API_KEY` says, else none is sent.
        verify: whether its certificate is checked, or by which authorities.
        timeout_s: how long one attempt may take where no deadline ends it earlier.
        retry: how patient calls are.
        budget: what share of the calls may be retries; several clients may share one.
        transport: takes httpx's own one's place, in tests for instance.
        clock: seconds that only grow.
        sleep: waits so many seconds.
        draw: a number from 0 to 1, at random.

    Raises:
        ValueError: an argument makes no sense.

    Every method raises a `TocomClientError`; `tocom_client.errors` says which there are.
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
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._address = Address.of(base_url, api_key)
        self._terms = Terms(
            retry or RetryPolicy(), budget or RetryBudget(), timeout_s, clock=clock, draw=draw
        )
        self._sleep = sleep
        self._http = httpx.Client(
            base_url=self._address.url,
            headers=self._address.headers,
            verify=verify,
            limits=limits(),
            trust_env=self._address.behind_proxies,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._address.url!r})"

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    # --- Images ---------------------------------------------------------------------------------

    def classify(
        self,
        image: ImageSource,
        *,
        top_k: int = 5,
        deadline_s: float | None = None,
        max_r: int | None = None,
        priority: Priority = "normal",
        request_id: str | None = None,
    ) -> Classification:
        """What the model sees in one image.

        Args:
            image: a path, an encoded image's bytes, an open binary file, or an image of Pillow's.
            top_k: how many classes to return.
            deadline_s: seconds for all of it, retries included; the server is told what is left,
                and goes by it in place of its own latency objective. None: no deadline.
            max_r: accept no more compression than this degree; beats a pin.
            priority: whose images go first under load.
            request_id: names the request in the server's log; None: one is made up.

        Raises:
            InvalidImage: it is none, is broken or too large, or its file cannot be read.
            Overloaded: the server has no room, also after the retries.
            DeadlineExceeded: the answer was not there in time.
            TocomClientError: anything else; see `tocom_client.errors`.
        """
        wishes = Wishes(top_k, deadline_s, max_r, priority)
        return self._run(classify_one(image, wishes, self._terms, request_id))

    def classify_many(
        self,
        images: Iterable[ImageSource],
        *,
        concurrency: int = 4,
        per_request: int = 4,
        top_k: int = 5,
        deadline_s: float | None = None,
        max_r: int | None = None,
        priority: Priority = "normal",
        retry: RetryPolicy = PATIENT,
        on_progress: OnProgress | None = None,
    ) -> Generator[Outcome, None, None]:
        """Many images, in their order; what cannot be classified says why and stops nobody.

        Args:
            images: taken as they are needed, a few requests ahead.
            concurrency: requests under way at once, each on a thread.
            per_request: images that are sent together.
            top_k: how many classes to return of each.
            deadline_s: seconds for each request, retries included.
            max_r: accept no more compression than this degree.
            priority: whose images go first under load; `low` is kind to others.
            retry: how patient each request is.
            on_progress: called in this thread as each outcome is handed out.

        Raises:
            Unauthorized: the API key is not good, so that no image will be.
            ValueError: an argument makes no sense.
        """
        check_sizes(concurrency, per_request)
        wishes = Wishes(top_k, deadline_s, max_r, priority)
        tally = Tally(len(images) if isinstance(images, Sized) else None, on_progress)
        groups, terms = grouped(images, per_request), self._terms.patient(retry)

        def outcomes_of(group: list[Item]) -> list[Outcome]:
            return self._run(classify_group(group, wishes, terms))

        return on_threads(groups, outcomes_of, concurrency, tally)

    # --- The model and the dial -----------------------------------------------------------------

    def model(self) -> ModelInfo:
        """What is served."""
        return self._call(endpoints.model_call())

    def compression(self) -> CompressionStatus:
        """The present degree, its bounds, and what each degree wins and costs."""
        return self._call(endpoints.compression_call())

    def pin(self, r: int, *, ttl_s: float | None = None) -> CompressionStatus:
        """Hold a degree, whatever the load; with `ttl_s` only for so many seconds.

        Raises:
            InvalidParameter: the server does not have that degree.
        """
        return self._call(endpoints.dial_call(r=r, ttl_s=ttl_s))

    def auto(self) -> CompressionStatus:
        """Hand the degree back to the server's controller."""
        return self._call(endpoints.dial_call(mode="auto"))

    def shadow(self, r: int | None = None, *, ttl_s: float | None = None) -> CompressionStatus:
        """Hold a degree (None: the present one) and watch what the policy would do."""
        return self._call(endpoints.dial_call(mode="shadow", r=r, ttl_s=ttl_s))

    def bound(self, min_r: int | None = None, max_r: int | None = None) -> CompressionStatus:
        """Bound what the controller may choose; None leaves that bound as it is.

        Raises:
            InvalidParameter: no degree would be left, or neither bound was given.
        """
        return self._call(endpoints.dial_call(min_r=min_r, max_r=max_r))

    def reload(
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
        """Serve another model or bank; without arguments the present files are read again.

        Args:
            model: a name in the server's `models_dir`, `default` or `configured`.
            bank: a name in `models_dir`, `auto` or `none`.
            labels: a name in `models_dir`.
            architecture: timm's name, for a file that does not say it.
            r_source: the degree that the model was fine-tuned at.
            scaling: of the bank's deltas.
            min_agreement: share of recent images that must get the same class as before.
            wait_s: return when it has ended, or after so many seconds; 0: at once. How it goes
                stands in `model().reload`.

        Raises:
            ReloadInProgress: another one is under way.
            ReloadFailed: it ended within `wait_s`, without success; nothing has changed.
            InvalidParameter: there is nothing of that name.
        """
        changes = {"model": model, "bank": bank, "labels": labels, "architecture": architecture}
        numbers = {"r_source": r_source, "scaling": scaling, "min_agreement": min_agreement}
        return self._call(endpoints.reload_call(wait_s, **changes, **numbers))

    # --- Its state ------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Whether it takes requests now; one that cannot be reached does not."""
        return self._run(is_ready(self._terms))

    def wait_until_ready(self, timeout_s: float = 120.0) -> None:
        """Return once it takes requests.

        Raises:
            NotReady: it was there but not ready in time.
            ConnectionFailed: it was not there.
        """
        self._run(until_ready(self._terms, timeout_s))

    def metrics(self) -> str:
        """Its metrics, in Prometheus's text format."""
        return self._call(endpoints.metrics_call())

    # --- How it is done -------------------------------------------------------------------------

    def _call(self, call: Call[T]) -> T:
        timer = Timer(self._terms.clock, None)
        return self._run(converse(call, self._terms, timer, self._terms.new_id()))

    def _run(self, talk: Talk[T]) -> T:
        """Do a conversation's steps until it has its result."""
        try:
            step = next(talk)
            while True:
                step = talk.send(self._do(step))
        except StopIteration as end:
            result: T = end.value
            return result

    def _do(self, step: Step) -> Done:
        match step:
            case Send(request):
                return self._send(request)
            case Sleep(seconds):
                self._sleep(seconds)
                return None
            case Encode(source):
                try:
                    return encode(source)
                except InvalidImage as error:
                    return error
            case _:
                assert_never(step)

    def _send(self, request: Request) -> Answer | Lost:
        try:
            return answer_of(self._http.send(built(self._http, request, self._terms.clock)))
        except httpx.HTTPError as error:
            return loss_from(error)

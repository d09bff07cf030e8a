"""The arithmetic of patience, for any numbers: waits, budgets, deadlines."""

import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocom_client import ConnectionFailed, DeadlineExceeded, NotReady, Overloaded, TocomClientError
from tocom_client.conversation import GRACE_S, LEAST_S, Done, Send, Sleep, Terms, converse
from tocom_client.retrying import SPREAD, RetryBudget, RetryPolicy, Timer
from tocom_client.wire import Answer, Call, Lost, retry_after_s

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
draws = st.floats(0, 1)
seconds = st.floats(0, 1e4)
policies = st.builds(
    RetryPolicy,
    attempts=st.integers(1, 8),
    first_delay_s=st.floats(0, 10),
    longest_delay_s=st.floats(0, 60),
    longest_retry_after_s=st.floats(0, 120),
    budgeted=st.booleans(),
)


@given(policies, st.integers(1, 5000), draws)
def test_a_backoff_is_the_upper_half_of_its_range(
    policy: RetryPolicy, failures: int, draw: float
) -> None:
    """Never longer than the longest, never less than half of what it could be, however many."""
    whole = min(policy.longest_delay_s, policy.first_delay_s * 2.0 ** min(failures - 1, 1000))
    wait = policy.backoff_s(failures, draw)
    assert whole / 2 <= wait <= whole
    assert wait <= policy.backoff_s(failures + 1, draw)


@given(policies, seconds, st.integers(1, 9), draws)
def test_a_named_time_is_kept(
    policy: RetryPolicy, asked_s: float, failures: int, draw: float
) -> None:
    """Never too early, later by a bounded share, and not at all if it is too far away."""
    wait = policy.wait_s(Overloaded("full", retry_after_s=asked_s), failures, draw)
    if failures >= policy.attempts or asked_s > policy.longest_retry_after_s:
        assert wait is None
    else:
        assert wait is not None
        latest_s = asked_s + min(SPREAD * asked_s, policy.longest_delay_s)
        assert asked_s <= wait <= max(latest_s, policy.backoff_s(failures, draw))
        assert wait >= policy.backoff_s(failures, draw)


@given(policies, st.integers(1, 9), draws)
def test_what_may_not_be_repeated_never_is(policy: RetryPolicy, failures: int, draw: float) -> None:
    """Whatever the policy, and whatever time the server names."""
    for error in (TocomClientError("x", retry_after_s=1), DeadlineExceeded("x"), SENT):
        assert policy.wait_s(error, failures, draw) is None


SENT = ConnectionFailed("too slow")


@given(st.floats(0, 1), st.floats(0, 20), st.lists(st.integers(0, 5), max_size=60))
def test_retries_stay_within_the_budget(share: float, reserve: float, wishes: list[int]) -> None:
    """In any order of calls and wishes for retries: the reserve, and a share of the calls."""
    budget = RetryBudget(share, reserve)
    taken = 0
    for calls, wanted in enumerate(wishes, 1):
        budget.begin()
        taken += sum(budget.take() for _ in range(wanted))
        assert taken <= reserve + share * calls + 1e-6


replies = st.sampled_from(
    [
        *(("answer", status, None) for status in (200, 400, 429, 500, 503, 504)),
        *(("answer", status, after) for status in (429, 503) for after in ("0", "1", "7", "500")),
        *(("lost", how, None) for how in ("unsent", "broken", "slow")),
    ]
)


@given(
    policies,
    st.lists(st.tuples(st.floats(0, 8), replies), min_size=9, max_size=9),
    st.one_of(st.none(), st.floats(0.01, 30)),
    st.booleans(),
    draws,
)
def test_any_conversation_keeps_to_its_terms(
    policy: RetryPolicy, script: list[tuple], deadline_s: float | None, twice: bool, draw: float
) -> None:
    """No attempt too many, none after the deadline, none of what was done or is no use.

    Each attempt is told what is left; no wait passes the deadline; all of it together takes no
    longer than the deadline and the grace that the last answer is given.
    """
    now = 50.0
    sends: list[tuple[str, Any]] = []
    error: TocomClientError | None = None
    terms = Terms(policy, RetryBudget(1, 100), 60, lambda: now, lambda: draw, lambda: NOW)
    timer = Timer(terms.clock, deadline_s)
    call = Call("POST", "/classify", lambda answer: answer, deadlined=True, repeatable=twice)
    talk = converse(call, terms, timer, "id")
    ends = math.inf if deadline_s is None else 50.0 + deadline_s
    done: Done = None
    try:
        step = next(talk)
        while True:
            if isinstance(step, Sleep):
                now += step.seconds
                assert now < ends
                done = None
            else:
                assert isinstance(step, Send) and now < ends
                _check_told(step, ends - now)
                took_s, (kind, what, after) = script[len(sends)]
                sends.append((kind, what))
                now += min(took_s, step.request.within_s)
                headers = {} if after is None else {"retry-after": after}
                done = Answer(what, headers, b"") if kind == "answer" else Lost(what, "gone")
            step = talk.send(done)
    except StopIteration as end:
        assert end.value is done
    except TocomClientError as raised:
        error = raised
    assert 1 <= len(sends) <= policy.attempts
    assert now <= ends + GRACE_S + 1e-9
    assert error is None or error.attempts == len(sends)
    may = {("answer", 429), ("answer", 503), ("lost", "unsent")}
    may |= {("lost", "broken")} if twice else set()
    assert all(send in may for send in sends[:-1])
    assert (error is None) == (sends[-1] == ("answer", 200))


def _check_told(step: Send, left_s: float) -> None:
    told = step.request.query.get("deadline_ms")
    if math.isinf(left_s):
        assert told is None and step.request.within_s == 60
    else:
        assert told is not None and left_s >= LEAST_S
        assert 0 <= left_s - int(told) / 1000 < 0.001 or int(told) == 1
        assert step.request.within_s == pytest.approx(left_s + GRACE_S)


@given(st.integers(-10_000, 10_000), st.integers(-100_000, 100_000))
def test_dates_count_from_the_answers_own(ahead_s: int, skew_s: int) -> None:
    """Two machines' clocks may differ; without a date of its own this one's is taken."""
    theirs = NOW + timedelta(seconds=skew_s)
    until = format_datetime(theirs + timedelta(seconds=ahead_s), usegmt=True)
    dated = {"retry-after": until, "date": format_datetime(theirs, usegmt=True)}
    assert retry_after_s(dated, NOW) == max(0, ahead_s)
    assert retry_after_s({"retry-after": until}, NOW) == max(0, ahead_s + skew_s)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("5", 5.0),
        (" 0 ", 0.0),
        ("9" * 5000, 1e9),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("٣", None),
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
        ("Fri, 02 Jan 2026 03:04:06 -0000", 1.0),
    ],
)
def test_only_sensible_times_count(text: str, found: float | None) -> None:
    """Nonsense in the header is no header."""
    assert retry_after_s({"retry-after": text}, NOW) == found


@pytest.mark.parametrize(
    "options",
    [{"attempts": 0}, {"first_delay_s": -1}, {"longest_delay_s": math.inf}, {"draw": 1}],
)
def test_policies_without_sense_are_refused(options: dict[str, float]) -> None:
    """When they are made, not when they are needed."""
    with pytest.raises((ValueError, TypeError)):
        RetryPolicy(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"share": -1}, {"reserve": math.nan}, {"share": math.inf}])
def test_budgets_without_sense_are_refused(options: dict[str, float]) -> None:
    """Likewise."""
    with pytest.raises(ValueError, match="expected numbers from 0 on"):
        RetryBudget(**options)


def test_errors_know_whether_they_may_pass() -> None:
    """Overload and start-up do by themselves."""
    assert Overloaded("x").repeatable and NotReady("x").repeatable
    assert not TocomClientError("x").repeatable

"""Hypothesis strategies that several tests share."""

from hypothesis import strategies as st

from server.scheduler import PendingRequest


@st.composite
def queues(draw: st.DrawFn, now: float = 100.0, max_size: int = 25) -> list[PendingRequest]:
    """Return waiting requests of all kinds, as they may stand in a queue at `now`."""
    count = draw(st.integers(0, max_size))
    return [
        PendingRequest(
            id=i,
            arrived_at=now - draw(st.floats(0, 5)),
            deadline=draw(st.none() | st.floats(now - 1, now + 3)),
            max_r=draw(st.none() | st.integers(0, 16)),
            priority=draw(st.integers(0, 2)),
        )
        for i in range(count)
    ]

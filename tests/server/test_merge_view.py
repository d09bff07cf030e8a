"""What merges in an image, shown in a quiet moment: who gets it, who is refused."""

import asyncio
from typing import Any

import pytest

from server.errors import Busy, Draining, ForwardFailed
from server.merge_view import PATIENCE_S, MergeView
from tests.server.fakes import loop_time, run_virtual


class Model:
    """Echoes after a second, or fails."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.ran: list[tuple[Any, int]] = []

    async def __call__(self, image: Any, r: int) -> Any:
        """Run one image."""
        self.ran.append((image, r))
        await asyncio.sleep(1)
        if self.error is not None:
            raise self.error
        return (image, r)


def test_it_runs_when_the_moment_comes() -> None:
    """Nothing runs until a step is asked for; then the one who waits gets the answer."""

    async def story() -> None:
        model = Model()
        view: Any = MergeView(model)
        assert await view.step() is False
        asked = asyncio.create_task(view.show("image", 3))
        await asyncio.sleep(1)
        assert model.ran == []
        assert await view.step() is True
        assert await asked == ("image", 3)
        assert await view.step() is False

    run_virtual(story())


def test_one_at_a_time() -> None:
    """While one waits or runs another is refused; afterwards there is room."""

    async def story() -> None:
        view: Any = MergeView(Model())
        first = asyncio.create_task(view.show("first", 1))
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await view.show("second", 1)
        await view.step()
        await first
        third = asyncio.create_task(view.show("third", 1))
        await asyncio.sleep(0)
        await view.step()
        assert await third == ("third", 1)

    run_virtual(story())


def test_no_quiet_moment() -> None:
    """Who waits in vain is told to come back, and is not run afterwards."""

    async def story() -> None:
        model = Model()
        view: Any = MergeView(model)
        with pytest.raises(Busy, match="busy classifying"):
            await view.show("image", 1)
        assert loop_time() == pytest.approx(PATIENCE_S)
        assert await view.step() is False
        assert model.ran == []

    run_virtual(story())


def test_patience_ends_with_the_begin() -> None:
    """A pass that has begun is waited for, however long it takes."""

    async def story() -> None:
        view: Any = MergeView(Model())
        asked = asyncio.create_task(view.show("image", 1))
        await asyncio.sleep(PATIENCE_S - 0.5)
        await view.step()
        assert await asked == ("image", 1)

    run_virtual(story())


def test_a_failure_is_the_askers_only() -> None:
    """The step ends well; who asked gets the error."""

    async def story() -> None:
        model = Model()
        model.error = ForwardFailed("no")
        view: Any = MergeView(model)
        asked = asyncio.create_task(view.show("image", 1))
        await asyncio.sleep(0)
        assert await view.step() is True
        with pytest.raises(ForwardFailed):
            await asked

    run_virtual(story())


def test_the_end_of_the_server() -> None:
    """Who waits is refused at once, and so is who comes; a pass that is cut off is told."""

    async def story() -> None:
        view: Any = MergeView(Model())
        asked = asyncio.create_task(view.show("image", 1))
        await asyncio.sleep(0)
        view.close()
        with pytest.raises(Draining):
            await asked
        with pytest.raises(Draining):
            await view.show("image", 1)

        cut: Any = MergeView(Model())
        asked = asyncio.create_task(cut.show("image", 1))
        await asyncio.sleep(0)
        step = asyncio.create_task(cut.step())
        await asyncio.sleep(0.5)
        step.cancel()
        with pytest.raises(Draining):
            await asked

    run_virtual(story())


def test_who_left_is_not_answered() -> None:
    """A client that went away meanwhile leaves nothing behind."""

    async def story() -> None:
        view: Any = MergeView(Model())
        asked = asyncio.create_task(view.show("image", 1))
        await asyncio.sleep(0)
        step = asyncio.create_task(view.step())
        await asyncio.sleep(0.5)
        asked.cancel()
        assert await step is True

    run_virtual(story())

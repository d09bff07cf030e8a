"""What the scheduler asks: which degrees there are, and which one the next batch takes."""

from typing import Protocol

from server.policy import Decision
from server.reach import Levels
from server.stats import LoadSnapshot


class Table(Protocol):
    """What the scheduler needs of the table of levels."""

    @property
    def devices(self) -> int:
        """How many devices compute batches of their own."""
        ...

    @property
    def spread(self) -> float:
        """Relative error of believed durations of late."""
        ...

    def points(self) -> Levels:
        """Return all levels of the model, ascending."""
        ...


class Dial(Protocol):
    """What the scheduler needs of the controller."""

    @property
    def table(self) -> Table:
        """What is believed of each degree."""
        ...

    def decide(self, load: LoadSnapshot) -> Decision:
        """Choose the next batch's degree."""
        ...

    def levels(self) -> Levels:
        """Return the levels that a decision may choose now; a pin leaves one."""
        ...

    def keeping(self) -> Levels:
        """Return the levels that keep the accuracy floor, whatever the bounds."""
        ...

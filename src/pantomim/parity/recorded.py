"""Random numbers that the official code drew, to be asked for again by ours."""

from typing import Any


class Recorded:
    """Numbers, (kind, ..., value) each, given out in turn, and what was asked for; `exact` refuses other kinds."""

    def __init__(self, draws: list[list[Any]], *, exact: bool = False) -> None:
        self._rest, self.exact = iter(draws), exact
        self.asked: list[list[Any]] = []

    def next(self, kind: str, *limits: float) -> Any:
        """The next value."""
        drawn = next(self._rest, None)
        if drawn is None:
            raise ValueError(f"Recorded.draws must not end here; one more {kind} is asked for.")
        if self.exact and drawn[:-1] != [kind, *limits]:
            raise ValueError(f"Recorded.draws must continue with {drawn[:-1]}; {[kind, *limits]} is asked for.")
        self.asked.append([kind, *limits, drawn[-1]])
        return drawn[-1]

    def integers(self, low: int, high: int) -> int:
        """A whole number."""
        return int(self.next("randint", low, high))

    def uniform(self, low: float, high: float) -> float:
        """A real one."""
        return float(self.next("uniform", low, high))

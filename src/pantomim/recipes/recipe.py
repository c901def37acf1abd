"""What a recipe is: a config under a name, with its cost, its expected score and the paper's own values beside it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pantomim.config import Pretrain, leaves, to_dict


@dataclass(frozen=True)
class Recipe:
    """A named starting point for a run.

    Args:
        build: Makes the config; its name is the recipe's name, its docstring has the command and the source.
        cost: What a run costs, and where that was measured or who says so.
        expected: The score to expect, and where that was measured or who says so.
        paper: Makes the config as the paper (or its code, where the paper is silent) has it; differences are computed.
        notes: What differs from the paper and is no field of the config.
        stages: Of a chain of runs, how many; None: a single run.
        origins: Where the values of `paper` come from, by the beginning of a setting's name; None: from the paper.
    """

    build: Callable[[], Pretrain]
    cost: str
    expected: str
    paper: Callable[[], Pretrain]
    notes: tuple[str, ...] = ()
    stages: int | None = None
    origins: Mapping[str, str] | None = None

    @property
    def name(self) -> str:
        """The full name: method, size, data."""
        return self.build.__name__

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (self.build.__doc__ or "").strip().splitlines()[0]


def differences(config: Pretrain, paper: Pretrain) -> list[tuple[str, object, object]]:
    """Every setting in which a config differs from the paper's: (dotted name, ours, the paper's).

    Where the images come from, how the run is carried out and what it is called are no differences.
    """
    ours, theirs = leaves(to_dict(config)), leaves(to_dict(paper))
    apart = ("recipe", "init", "runtime.", "data.source", "data.workers", "data.memory_gib")
    return [
        (name, ours.get(name), theirs.get(name))
        for name in dict.fromkeys([*theirs, *ours])
        if not name.startswith(apart) and ours.get(name) != theirs.get(name)
    ]

"""Arms that use other arms' runs: "{run:ARM}" in a setting stands for the run folder of that arm's cell."""

import difflib
import re
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pantomim.study.inputs import texts

RUN_OF = re.compile(r"\{run:(?P<arm>[^{}]*)\}")


def needed_arms(settings: Any) -> tuple[str, ...]:
    """The arms whose runs the settings name, each once."""
    return tuple(dict.fromkeys(match["arm"] for text in texts(settings) for match in RUN_OF.finditer(text)))


def check_needs(arms: Mapping[str, Any]) -> None:
    """See that every arm that is used exists, and that none needs itself in the end.

    Args:
        arms: By name, all settings of an arm.

    Raises:
        ValueError: naming the arm that there is not, or the circle.
    """
    needs = {arm: needed_arms(settings) for arm, settings in arms.items()}
    for arm, others in needs.items():
        for other in others:
            if other not in arms:
                close = difflib.get_close_matches(other, arms, n=1, cutoff=0.5)
                raise ValueError(
                    f"Plan.arms.{arm} must use runs of arms ({', '.join(arms)}); got {{run:{other}}}."
                    + (f" Did you mean {close[0]}?" if close else "")
                )
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        circle = " needs ".join(reversed(error.args[1]))
        raise ValueError(f"Plan.arms must not need each other in a circle; got {circle}. Break it.") from None


def with_runs(settings: Any, folders: Mapping[str, Path]) -> Any:
    """The same settings with the folders of other arms' runs.

    Args:
        settings: Nested.
        folders: By arm.
    """
    if isinstance(settings, dict):
        return {key: with_runs(value, folders) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [with_runs(item, folders) for item in settings]
    if not isinstance(settings, str):
        return settings
    return RUN_OF.sub(lambda match: str(folders[match["arm"]].resolve()), settings)


def moved(written: Any, planned: Any, folders: Mapping[str, Path]) -> Any:
    """The settings that a run wrote down, with the folders of other arms' runs where they are now.

    Args:
        written: Nested.
        planned: The same as the plan has them, with "{run:ARM}".
        folders: By arm.
    """
    if isinstance(written, dict) and isinstance(planned, dict):
        return {key: moved(value, planned.get(key), folders) for key, value in written.items()}
    return with_runs(planned, folders) if isinstance(planned, str) and RUN_OF.search(planned) else written

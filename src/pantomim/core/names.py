"""What was probably meant by a name that is not known."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", *, prefix: str = "") -> str:
    """A question, after a space, that names the nearest of the known names; where none is near, the other advice."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    advice = f"Did you mean {prefix}{close[0]}?" if close else otherwise
    return f" {advice}" if advice else ""

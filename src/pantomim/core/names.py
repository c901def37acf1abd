"""What was probably meant by a name that is not known."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", *, prefix: str = "") -> str:
    """A question, after a space, that names the nearest of the known names; where none is near, the other advice."""
    alike = [*known]
    close = [full for full in alike if full.endswith(f".encoder.{name}")]  # what people mean of several leaves
    close = close[:1] or difflib.get_close_matches(name, alike, n=1, cutoff=0.5)
    advice = f"Did you mean {prefix}{close[0]}?" if close else otherwise
    return f" {advice}" if advice else ""

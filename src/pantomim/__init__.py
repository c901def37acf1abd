"""Pantomim: masked image modelling, from images to an encoder people use."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pantomim.formats import load

__all__ = ["load"]


def __getattr__(name: str) -> object:
    """`pantomim.load`, imported on first use, so that `import pantomim` stays light."""
    if name == "load":
        from pantomim.formats import load

        return load
    raise AttributeError(f"module 'pantomim' has no attribute {name!r}")

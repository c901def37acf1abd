"""Pantomim: masked image modelling, from images to an encoder people use.

The verbs are those of the command line; all else is imported from the parts of the package.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pantomim.formats import load
    from pantomim.formats.exports import export
    from pantomim.verbs import compare, evaluate, explain, finetune, inspect, predict, pretrain, report, segment

    __version__: str

__all__ = [
    "__version__",
    "compare",
    "evaluate",
    "explain",
    "export",
    "finetune",
    "inspect",
    "load",
    "predict",
    "pretrain",
    "report",
    "segment",
]
_ELSEWHERE = {  # than in `pantomim.verbs`
    "load": ("pantomim.formats", "load"),
    "export": ("pantomim.formats.exports", "export"),
}


class _Package(ModuleType):
    """The package; a part of it, once imported, does not take the place of the verb of the same name."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> object:
    """A verb, imported on first use, so that `import pantomim` stays light."""
    if name == "__version__":
        from importlib.metadata import version

        return version("pantomim")
    if name in __all__:
        module, attribute = _ELSEWHERE.get(name, ("pantomim.verbs", name))
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'pantomim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

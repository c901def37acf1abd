"""The interface of a place to leave to."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from pantomim.formats.exports.network import Network

Loaded = Callable[[Tensor], tuple[Tensor, ...]]  # from scaled images to what `Outputs` gives


class Destination(ABC):
    """A library's files; `exports.DESTINATIONS` lists them."""

    name: ClassVar[str]

    @abstractmethod
    def write(self, network: Network, folder: Path) -> str:
        """Write the files into a folder; gives what it is there, in words. A ValueError says what is in the way."""

    @abstractmethod
    def read(self, network: Network, folder: Path) -> Loaded:
        """What was written, loaded by the library alone."""

    @abstractmethod
    def code(self, network: Network) -> str:
        """Lines of Python that load it from the current folder."""

    def refuse(self, network: Network, why: str) -> ValueError:
        """The error of a network that has no place there."""
        return ValueError(
            f"export.to must be a library with a network that is the same as the {network.kind} of {network.spec}; got "
            f"{self.name}, which has none: {why}. Use onnx or exported_program, which take every network."
        )

    def missing(self, extra: str) -> ValueError:
        """The error of a library that is not installed."""
        return ValueError(
            f"export.to must be written by packages that are installed; got {self.name}, whose are not. Run "
            f"`pip install 'pantomim[{extra}]'`, or choose timm or exported_program."
        )

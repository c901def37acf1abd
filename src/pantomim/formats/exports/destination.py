"""The interface of a place to leave to, and what the libraries with networks of their own share."""

import copy
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from pantomim.core.foreign import reason
from pantomim.core.modes import initial_weights_unused
from pantomim.formats.exports.network import Network, Outputs
from pantomim.formats.native import SEGMENTER
from pantomim.formats.trainable import Naming, fill_as
from pantomim.nn.vit import Encoder

Loaded = Callable[[Tensor], tuple[Tensor, ...]]  # from scaled images to what `Outputs` gives
SAME = 1e-5  # at most, of outputs in float64, relative to the largest


class Candidate(NamedTuple):
    """A network of a library that may be the same as ours."""

    name: str  # in words
    build: Callable[[], nn.Module]  # with initial weights
    run: Callable[[nn.Module, Tensor], tuple[Tensor, ...]]  # of images that are standardised


class Destination(ABC):
    """A library's files; `exports.DESTINATIONS` lists them."""

    name: ClassVar[str]

    @abstractmethod
    def write(self, network: Network, folder: Path) -> tuple[str, str]:
        """Write the files; gives what it is, in words, and Python that loads it. `ValueError`: what is in the way."""

    @abstractmethod
    def read(self, network: Network, folder: Path) -> Loaded:
        """What was written, loaded by the library alone."""

    def missing(self, extra: str) -> ValueError:
        """The error of a library that is not installed."""
        return ValueError(
            f"export.to must be written by packages that are installed; got {self.name}, whose are not. Run "
            f"`pip install 'pantomim[{extra}]'`, or choose timm or exported_program."
        )

    def fitting(self, network: Network, candidates: Iterable[Candidate], named: Naming) -> tuple[Candidate, nn.Module]:
        """The first candidate that computes the same, which is tried in float64, filled, in float32."""
        encoder, problems = network.encoder, list[str]()
        if network.kind == SEGMENTER or not isinstance(encoder, Encoder):
            raise self._refused(network, "it has no segmenters, and of others' networks those that become ours alone")
        weights = {name.removeprefix("encoder."): value for name, value in network.module.state_dict().items()}
        shape = (2, encoder.in_chans, *encoder.image_size)
        images = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = Outputs(copy.deepcopy(network.module).double())(images)
        for candidate in candidates:
            try:
                with initial_weights_unused(), quiet(), torch.no_grad():
                    model = candidate.build().float().eval()
                    if not (report := fill_as(model, named, weights, encoder.config)):
                        found = candidate.run(model.double(), standardised(network, images))
                        limit = SAME * max(float(each.abs().max()) for each in expected)
                        if largest_difference(found, expected) <= limit:
                            return candidate, model.float()
                        report = "with the same weights it computes something else"
            except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
                report = reason(error)  # what libraries raise for what they lack
            problems.append(f"{candidate.name}: {report[:200]}")
        raise self._refused(network, "; ".join(problems) or "it has no network of this kind")

    def _refused(self, network: Network, why: str) -> ValueError:
        return ValueError(
            f"export.to must be a library with a network that is the same as the {network.kind} of {network.spec}; got "
            f"{self.name}, which has none: {why}. Use onnx or exported_program, which take every network."
        )


def standardised(network: Network, images: Tensor) -> Tensor:
    """Scaled images as networks of other libraries take them."""
    mean, std = (torch.tensor(values, dtype=images.dtype).view(-1, 1, 1) for values in network.encoder.statistics)
    return (images - mean) / std


def largest_difference(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Of two networks' outputs; infinite where their shapes differ, or one is not finite."""
    if [each.shape for each in found] != [each.shape for each in expected]:
        return float("inf")
    largest = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    return largest if largest == largest else float("inf")


def head_apart(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights of a classifier's head and norm by our names, from those of a library's (which begin so)."""
    found: dict[str, Tensor] = {}
    for theirs, ours in names.items():
        found |= {ours + name.removeprefix(theirs): w for name, w in weights.items() if name.startswith(theirs)}
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Libraries log and warn of what is an error of ours, or no matter, within."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(level)

"""A network of another library that is the same as ours: some are built, filled, and tried in float64."""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pantomim.core.foreign import reason
from pantomim.formats.exports.network import Network, Outputs
from pantomim.formats.layout import initial_weights_unused
from pantomim.formats.trainable import Naming, fill_as
from pantomim.nn.heads import Classifier, Pool
from pantomim.nn.vit import Encoder

SAME = 1e-5  # at most, of outputs in float64, relative to the largest


class Candidate(NamedTuple):
    """A network that may be the same."""

    name: str  # in words
    build: Callable[[], nn.Module]
    run: Callable[[nn.Module, Tensor], tuple[Tensor, ...]]  # of images that are standardised already


def fitting(network: Network, candidates: Iterable[Candidate], named: Naming) -> tuple[Candidate, nn.Module] | str:
    """The first candidate that computes the same, filled, in float32; or what was in the way of each, in words."""
    encoder, problems = network.encoder, []
    assert isinstance(encoder, Encoder)
    weights = {name.removeprefix("encoder."): value for name, value in network.module.state_dict().items()}
    ours = Outputs(copy.deepcopy(network.module).double())
    shape = (2, encoder.in_chans, *encoder.image_size)
    images = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = ours(images)
    for candidate in candidates:
        try:
            with initial_weights_unused(), quiet():
                model = candidate.build().float().eval()
            report = fill_as(model, named, weights, encoder.config)
            if not report:
                with torch.no_grad():
                    found = candidate.run(model.double(), standardised(network, images))
                far = largest_difference(found, expected) > SAME * max(float(each.abs().max()) for each in expected)
                report = "with the same weights it computes something else" if far else ""
        except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            report = reason(error)
        if not report:
            return candidate, model.float()
        problems.append(f"{candidate.name}: {report[:200]}")
    return "; ".join(problems) or "it has no network of this kind"


def standardised(network: Network, images: Tensor) -> Tensor:
    """Scaled images as networks of other libraries take them."""
    mean, std = (torch.tensor(values, dtype=images.dtype).view(-1, 1, 1) for values in network.statistics)
    return (images - mean) / std


def largest_difference(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Of two networks' outputs; infinite where their shapes differ, or one is not finite."""
    if len(found) != len(expected) or any(a.shape != b.shape for a, b in zip(found, expected, strict=True)):
        return float("inf")
    largest = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    return largest if largest == largest else float("inf")


def head_apart(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights of a classifier's head and norm by our names, from those of a library's (which begin so)."""
    found: dict[str, Tensor] = {}
    for theirs, ours in names.items():
        found |= {ours + name.removeprefix(theirs): value for name, value in weights.items() if name.startswith(theirs)}
    return found


def pool_of(network: Network) -> Pool | None:
    """How a classifier pools; None: of an encoder."""
    return network.module.pool if isinstance(network.module, Classifier) else None


@contextmanager
def quiet() -> Iterator[None]:
    """Libraries warn of what is an error of ours, or no matter, within."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)

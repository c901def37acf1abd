"""Weights that fit or are refused."""

import hashlib
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values; it does not depend on the file layout or the device."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def key_report(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], may_differ: Collection[str] = ()) -> str:
    """How names and shapes differ: all that are missing, unexpected and mis-shaped; empty if they agree.

    Args:
        expected: What a module holds.
        found: What a file holds.
        may_differ: Names that may be missing or unexpected.
    """
    problems = [
        ("missing", sorted(expected.keys() - found.keys() - set(may_differ))),
        ("unexpected", sorted(found.keys() - expected.keys() - set(may_differ))),
        (
            "mis-shaped",
            [
                f"{name} {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
                for name in sorted(expected.keys() & found.keys())
                if found[name].shape != expected[name].shape
            ],
        ),
    ]
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems if names)


def load_exactly(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into a module; names and shapes must agree.

    Raises:
        ValueError: with all missing, unexpected and mis-shaped names.
    """
    report = key_report(module.state_dict(), weights)
    if report:
        raise ValueError(
            f"{source} must hold the weights of {type(module).__name__}; got {report}. "
            f"Check that the weights and the description beside them come from the same run."
        )
    module.load_state_dict(dict(weights))

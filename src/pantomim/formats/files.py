"""Weights by name: their hash, whether they are finite, and whether they fit a module."""

import hashlib
from collections.abc import Mapping

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


def frozen_parts(module: nn.Module) -> dict[str, nn.Module]:
    """The parts that never change, by name: the outermost modules whose attribute `frozen` is True.

    Where it is False, what lies within changes too: an EMA teacher may be made of frozen modules. Frozen parts are in
    no file of a run: they are loaded again from their source, and known by their hash.
    """
    found: dict[str, nn.Module] = {}
    for name, part in module.named_children():
        frozen = getattr(part, "frozen", None)
        if frozen is True:
            assert not any(weight.requires_grad for weight in part.parameters()), f"{name} is frozen and yet learns"
            found[name] = part
        elif frozen is None:
            found |= {f"{name}.{inner}": module for inner, module in frozen_parts(part).items()}
    return found


def frozen_hashes(module: nn.Module) -> dict[str, str]:
    """The hash of each frozen part, over parameters and all buffers, non-persistent ones too."""
    parts = frozen_parts(module).items()
    return {name: hash_weights(dict(part.named_parameters()) | dict(part.named_buffers())) for name, part in parts}


def other_parts(found: Mapping[str, str], stated: Mapping[str, str]) -> str:
    """Which frozen parts, by their hashes, are not those that a file states; empty if all are."""
    pairs = {name: (found.get(name, "none"), stated.get(name, "none")) for name in sorted(found.keys() | stated.keys())}
    return ", ".join(f"{name} ({a[:12]} instead of {b[:12]})" for name, (a, b) in pairs.items() if a != b)


def key_report(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Every name that is missing, unexpected or mis-shaped in `found`; empty if names and shapes agree."""
    problems = {"missing": expected.keys() - found.keys(), "unexpected": found.keys() - expected.keys()}
    shapes = [(name, tuple(found[name].shape), tuple(expected[name].shape)) for name in expected.keys() & found.keys()]
    problems["mis-shaped"] = {f"{name} {ours} instead of {theirs}" for name, ours, theirs in shapes if ours != theirs}
    return "; ".join(f"{kind}: {', '.join(sorted(names))}" for kind, names in problems.items() if names)


def check_finite(weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights with NaN or infinity: whatever they compute looks like a result and is none."""
    bad = [name for name, weight in weights.items() if weight.is_floating_point() and not weight.isfinite().all()]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise ValueError(
            f"{source} must hold finite weights; got NaN or infinity in {', '.join(bad[:3])}{more}. Training "
            f"went wrong before they were written, or the file is damaged: take an earlier checkpoint."
        )


def load_exactly(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into a module; a ValueError lists all names and shapes that disagree, or what is not finite."""
    if report := key_report(module.state_dict(), weights):
        raise ValueError(
            f"{source} must hold the weights of {type(module).__name__}; got {report}. "
            f"Check that the weights and the description beside them come from the same run."
        )
    check_finite(weights, source)
    module.load_state_dict(dict(weights))

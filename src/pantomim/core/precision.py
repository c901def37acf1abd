"""The precision of what must not be rounded (losses, statistics, scores), and of what may be: frozen networks."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


@contextmanager
def tf32() -> Iterator[None]:
    """Where float32 products of a GPU may round their operands to TF32, as convolutions do by torch's own default.

    Around a frozen network, never within a compiled graph, which has the precision that it is called in.
    """
    products = torch.backends.cuda.matmul
    if torch.compiler.is_compiling() or (before := products.fp32_precision) == "tf32":
        yield
        return
    products.allow_tf32 = True
    try:
        yield
    finally:
        products.allow_tf32 = False
        products.fp32_precision = before  # "none" is not "ieee" to graphs that were compiled before

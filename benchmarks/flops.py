"""What a training step computes, by formula and by counting, and what a GPU could do at most.

    .venv/bin/python benchmarks/flops.py                          # one H100: --tflops 790 --bandwidth 3.0
    .venv/bin/python benchmarks/flops.py --tflops 791 --bandwidth 4.3     # one H200

Multiply-adds of the matrix products of one image at 224 x 224 pixels; FLOPs are twice that. A trained part costs
forward, gradient of the input and gradient of the weights (the patch projection has no gradient of its input), a frozen
part forward alone. Layer norm, softmax, GELU, losses, masks and optimiser count nothing. Three bounds, each nearer:
arithmetic alone; every product at its own roofline; and that with the bytes of the elementwise kernels that a good
compiler leaves between products. Passing the third takes fusion into the products.

`MatrixProducts` counts what really runs; tests hold the counts of the methods below these formulas.
"""

import argparse
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SIZES = {"B": (768, 12), "L": (1024, 24)}  # width and depth
PATCHES, PIXELS = 14 * 14, 3 * 16 * 16  # of an image, and the values of a patch
DECODER = (512, 8)
VOCABULARY = 8192
TOKENIZER_BYTES = 149e6  # ReLUs, skips and pooling of the DALL-E encoder in float16, as a compiler leaves them
HALF = 2  # bytes of a bf16 number
ELEMENTWISE = 18 * HALF  # bytes a token, channel and block, forward: norms, residuals, GELU; backward about twice that
Operand = tuple[tuple[int, ...], tuple[int, ...]]  # shape and strides


@dataclass
class Work:
    """Of one image in one step of training."""

    macs: float = 0.0
    listed: list[tuple[int, int, int, int]] = field(default_factory=list)  # products: how many, m, k, n
    moved: float = 0.0  # bytes of elementwise kernels

    def add(self, macs: float, passes: int) -> None:
        """Products that run as often as there are passes: 3 trained, 2 without gradient of the input, 1 frozen."""
        self.macs += macs * passes

    def blocks(self, tokens: int, width: int, depth: int, passes: int = 3, context: int | None = None) -> None:
        """Transformer blocks among tokens, or from tokens to a context."""
        read = context or tokens
        shapes = [(tokens, width, width), (read, width, 2 * width), (tokens, width, width)]
        if context is None:
            shapes = [(tokens, width, 3 * width), (tokens, width, width)]
        shapes += [(tokens, width, 4 * width), (tokens, 4 * width, width)]
        attention = 2 * tokens * read * width  # stays on the chip
        self.add(depth * (sum(m * k * n for m, k, n in shapes) + attention), passes)
        self.listed += [(depth * passes, *shape) for shape in shapes]
        self.moved += tokens * width * depth * ELEMENTWISE * passes

    @property
    def flops(self) -> float:
        """A multiply-add is two."""
        return 2 * self.macs

    def seconds(self, flops: float, bandwidth: float) -> tuple[float, float, float]:
        """The three bounds, by FLOP/s and bytes/s; weights, which a large batch shares, are free."""
        rooflines = (n * max(2 * m * k * o / flops, HALF * m * (k + o) / bandwidth) for n, m, k, o in self.listed)
        rest = 2 * (self.macs - sum(n * m * k * o for n, m, k, o in self.listed)) / flops
        products = sum(rooflines) + rest
        return self.flops / flops, products, products + self.moved / bandwidth

    def rate(self, flops: float, bandwidth: float) -> float:
        """Images a second at most, without fusion into the products."""
        return 1 / self.seconds(flops, bandwidth)[2]


def embed(work: Work, width: int, passes: int = 2) -> None:
    """The projection of all patches."""
    work.add(PATCHES * PIXELS * width, passes)


def mae(size: str = "B", out: int = PIXELS) -> Work:
    """Visible patches through the encoder, all through the decoder."""
    work, (width, depth), (decoder, decoder_depth), visible = Work(), SIZES[size], DECODER, PATCHES // 4
    embed(work, width)
    work.blocks(visible + 1, width, depth)
    work.add((visible + 1) * width * decoder, 3)
    work.blocks(PATCHES + 1, decoder, decoder_depth)
    work.add((PATCHES + 1) * decoder * out, 3)
    return work


def with_teacher(work: Work, size: str) -> Work:
    """And a frozen network as large as the student, on the whole image."""
    width, depth = SIZES[size]
    embed(work, width, 1)
    work.blocks(PATCHES + 1, width, depth, 1)
    return work


def dbot(size: str = "B") -> Work:
    """MAE that predicts the features of a teacher."""
    return with_teacher(mae(size, SIZES[size][0]), size)


def cmt_mae(size: str = "B") -> Work:
    """MAE that predicts those of a teacher and of the student's moving average."""
    return with_teacher(with_teacher(mae(size, 2 * SIZES[size][0]), size), size)


def with_tokenizer(work: Work, masked: int, side: int = 112, width: int = 256) -> Work:
    """And the DALL-E encoder: a 7 x 7 stem, four groups of two blocks of four convolutions, 1 x 1 to masked codes."""
    macs, chans = side * side * 3 * width * 49, width
    for group, out in enumerate((width, 2 * width, 4 * width, 8 * width)):
        for _ in range(2):
            inner, skip = out // 4, chans * out if chans != out else 0
            macs += side * side * (9 * chans * inner + 2 * 9 * inner * inner + inner * out + skip)
            chans = out
        side = side // 2 if group < 3 else side
    work.add(macs + masked * chans * VOCABULARY, 1)
    work.moved += TOKENIZER_BYTES
    return work


def beit(size: str = "B") -> Work:
    """All patches through the encoder, but for the last block's queries; the ids of 40 % predicted."""
    work, (width, depth), masked = Work(), SIZES[size], int(0.4 * PATCHES)
    embed(work, width)
    work.blocks(PATCHES + 1, width, depth - 1)
    work.blocks(masked, width, 1, context=PATCHES + 1)
    work.add(masked * width * VOCABULARY, 3)
    return with_tokenizer(work, masked)


def cae(size: str = "B", masked: int = 75) -> Work:
    """Visible patches through the encoder, masked ones through regressor and decoder, and for the alignment."""
    work, (width, depth) = Work(), SIZES[size]
    embed(work, width)
    work.blocks(PATCHES - masked + 1, width, depth)
    work.blocks(masked, width, 4, context=PATCHES)
    work.blocks(masked, width, 4)
    work.add(masked * width * VOCABULARY, 3)
    embed(work, width, 1)
    work.blocks(masked + 1, width, depth, 1)
    return with_tokenizer(work, masked)


METHODS: dict[str, Callable[..., Work]] = {"mae": mae, "beit": beit, "cae": cae, "dbot": dbot, "cmt_mae": cmt_mae}


def work_of(what: str) -> Work | None:
    """Of a method and size as `mae-B` (whatever follows), as the GPU pages name them; None of others."""
    method, _, size = what.partition(",")[0].rpartition("-")
    return METHODS[method](size) if method in METHODS and size in SIZES else None


class MatrixProducts(TorchDispatchMode):
    """Counts the matrix products (and attentions, as products) that run inside it, by operands and number type.

    torch's own `FlopCounterMode` would not do: it knows no operands to replay, and not the CPU's attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[Operand, Operand, torch.dtype]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Note the operands, then run as ever."""
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm"):
            self._note(*args[:2])
        elif name in ("addmm", "baddbmm"):
            self._note(*args[1:3])
        elif "scaled_dot_product" in name:
            backward = name.endswith("backward")
            query, key = args[1:3] if backward else args[:2]
            self._attention(query, key, backward)
        elif torch.is_inference_mode_enabled() and func.namespace == "aten":  # there linear layers arrive whole
            with self:
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        result = func(*args, **(kwargs or {}))
        if name == "convolution":
            images, weight = args[:2]
            self._convolution(images, weight, result)
        return result

    def _note(self, left: Tensor, right: Tensor) -> None:
        of_left, of_right = ((tuple(t.shape), tuple(t.stride())) for t in (left, right))
        self.found[of_left, of_right, left.dtype] += 1

    def _convolution(self, images: Tensor, weight: Tensor, result: Tensor) -> None:
        """As the product of all windows with the kernels; the gradients of a convolution are not counted."""
        windows = torch.empty(result.shape[2:].numel() * len(images), weight[0].numel(), device="meta")
        self._note(windows.to(images.dtype), torch.empty(weight[0].numel(), len(weight), device="meta"))

    def _attention(self, query: Tensor, key: Tensor, backward: bool) -> None:
        """Two products forward, four backward; what a kernel computes again is not counted."""
        groups, (queries, width), keys = query.shape[0] * query.shape[1], query.shape[2:], key.shape[2]
        ours, others, scores = (
            torch.empty(groups, *shape, device="meta", dtype=query.dtype)
            for shape in ((queries, width), (keys, width), (queries, keys))
        )
        self._note(ours, others.mT)  # the scores; backward, the gradient of the weights
        self._note(scores, others)  # the mixture; backward, the gradient of the queries
        if backward:
            self._note(scores.mT, ours)  # the gradient of the keys
            self._note(scores.mT, ours)  # the gradient of the values

    def replay(self, device: torch.device) -> Callable[[], None]:
        """The same products on tensors of their own, and nothing else."""
        products = []
        for (*operands, dtype), count in self.found.items():
            left, right = (random_strided(*o, dtype, device) for o in operands)
            out = left @ right
            products.append((torch.mm if left.dim() == 2 else torch.bmm, left, right, out, count))

        def run() -> None:
            for product, left, right, out, count in products:
                for _ in range(count):
                    product(left, right, out=out)

        return run

    def flops(self, *dtypes: torch.dtype) -> int:
        """Multiplications and additions of all of them, or of those of some number types."""
        return sum(
            2 * n * math.prod(left[0]) * right[0][-1]
            for (left, right, dtype), n in self.found.items()
            if not dtypes or dtype in dtypes
        )


def random_strided(
    shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Random numbers that lie in memory as they are told to, also on top of each other."""
    reach = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return torch.empty(reach, dtype=dtype, device=device).normal_().as_strided(shape, strides)


def main() -> None:
    """Print a row for each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tflops", type=float, default=790, help="of a large bf16 product, as measured on the card")
    parser.add_argument("--bandwidth", type=float, default=3.0, help="TB/s of a copy, read and written")
    options = parser.parse_args()
    print("| method, ViT | GFLOP a step | images/s: arithmetic | products at their roofline | and elementwise bytes |")
    print("|---|---|---|---|---|")
    for name, of in METHODS.items():
        for size in SIZES:
            work = of(size)
            rates = [1 / seconds for seconds in work.seconds(options.tflops * 1e12, options.bandwidth * 1e12)]
            cells = " | ".join(f"{rate:,.0f}" for rate in rates)
            print(f"| {name}, {size}/16 | {work.flops / 1e9:.1f} | {cells} |")


if __name__ == "__main__":
    main()

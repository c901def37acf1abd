"""What a training step is made of, counted without a clock; one graph for each method is `test_compile`'s."""

import os
import subprocess
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from benchmark_scripts import benchmark
from compiled_forwards import CASES
from image_files import fill, png
from tiny import tiny_images
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pantomim.config import Pretrain, RuntimeConfig
from pantomim.core.batch import Batch
from pantomim.data.sources import open_source
from pantomim.data.stream import Stream
from pantomim.data.transforms import Crop
from pantomim.engine.runtime import autocast, generator
from pantomim.engine.stops import FiniteWatch
from pantomim.engine.training import Training
from pantomim.methods.base import Method
from pantomim.methods.beit import BEiTConfig
from pantomim.methods.cae import CAEConfig
from pantomim.methods.cmt_mae import CMTMAEConfig
from pantomim.methods.dbot import DBOTConfig
from pantomim.methods.mae import MAEConfig
from pantomim.nn.attention import Attention, CrossAttention, PromptedAttention
from pantomim.nn.dvae import DVAEEncoder, DVAESizes
from pantomim.nn.vit import EncoderConfig
from pantomim.targets.tokens import TokenTarget
from pantomim.teachers.base import Teacher
from pantomim.teachers.choice import TeacherConfig
from pantomim.teachers.mixing import Mixing
from pantomim.tokenizers.dvae import DVAETokenizer
from pantomim.tokenizers.resized import on_grid

CPU, IMAGES, STEP = torch.device("cpu"), 2, 98
# ViT-B/16 at 224 x 224. GFLOP of a step, and megabytes that backward keeps in bfloat16; both an image, and at most.
AT_MOST = {
    "mae": (57.15, 48.0),
    "beit": (151.50, 107.0),
    "cae": (157.87, 76.5),
    "dbot": (92.30, 48.0),
    "cmt_mae": (128.22, 48.9),
    "mae, residual": (57.15, 42.3),
    "beit, residual": (151.50, 99.2),
}
METHODS = {
    "mae": MAEConfig(),
    "beit": BEiTConfig(),
    "cae": CAEConfig(),
    "dbot": DBOTConfig(),
    "cmt_mae": CMTMAEConfig(teacher=TeacherConfig("random", output="norm"), mixing=Mixing(warmup_share=0.0)),
}


def not_yet(names: set[str], all_names: Any, reason: str) -> list[Any]:
    """The cases, of which some are known to fail: one that no longer does is to be taken off the list."""
    mark = pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)
    return [pytest.param(name, marks=mark) if name in names else name for name in all_names]


counting = pytest.mark.xdist_group("counted")  # one process counts each step, once


@dataclass
class Step:
    """What was counted in a step of a ViT-B."""

    flops: int
    float32_flops: int = 0  # of products outside of teachers and tokenizers, which never round on a CPU
    kept_bytes: int = 0
    teachers: int = 0
    teachers_in_half: int = 0  # that are asked under autocast and follow it


@cache
def counted(name: str) -> Step:
    """Draws, forward and backward on tensors without memory, under autocast as `Training.step` has it."""
    name, _, kept_in = name.partition(", ")
    flops, config = benchmark("flops"), METHODS[name]
    with (fake := FakeTensorMode(allow_non_fake_inputs=True)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # where a part is copied
        method = config.build(100, **tokens(config.encoder) if name in ("beit", "cae") else {})
    step, products = Step(0), flops.MatrixProducts()
    weights = {tuple(sorted(weight.shape)) for weight in method.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tuple(sorted(tensor.shape)) not in weights:  # nor their copies in bfloat16
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    def enter(part: nn.Module, _: Any) -> None:
        if isinstance(part, Teacher):
            step.teachers += 1
            step.teachers_in_half += torch.is_autocast_enabled("cpu") and not part.float32
        else:
            assert part.float16
        step.float32_flops += products.flops(torch.float32)

    def leave(*_: Any) -> None:
        step.float32_flops -= products.flops(torch.float32)

    for part in method.modules():
        if isinstance(part, Teacher | DVAETokenizer):
            part.register_forward_pre_hook(enter)
            part.register_forward_hook(leave)
    draw = method.draw

    def draw_numbers(*args: Any) -> Any:  # real ones, as masks are read on the host
        with unset_fake_temporarily():
            return draw(*args)

    method.draw = draw_numbers
    training = training_of(method, precision="bfloat16_residual" if kept_in else "bfloat16")
    training.optimizer.step = lambda: None  # adds no product
    with fake, products, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        training.step(STEP, [Batch(torch.zeros(IMAGES, 3, 224, 224), total=IMAGES)])
    step.float32_flops += products.flops(torch.float32)
    step.flops, step.kept_bytes = products.flops() // IMAGES, sum(kept.values()) // IMAGES
    return step


def tokens(encoder: EncoderConfig) -> dict[str, Any]:
    """The target of BEiT and CAE: a tokenizer as large as DALL-E's."""
    tokenizer = DVAETokenizer(DVAEEncoder(DVAESizes()), float16=True)
    return {"target": TokenTarget(on_grid(tokenizer, encoder.image_size, encoder.grid))}


def training_of(method: Method, batch_size: int = IMAGES, precision: Any = "bfloat16") -> Training:
    """As a run in bfloat16 trains it."""
    runtime = RuntimeConfig(tracker="none", device="cpu", precision=precision)
    return Training(Pretrain("counted", batch_size=batch_size, runtime=runtime), method, 100, 0, Accelerator(cpu=True))


@counting
@pytest.mark.parametrize("name", AT_MOST)
def test_no_more_products_than_the_mathematics_asks(name: str) -> None:
    found, formula = counted(name).flops, benchmark("flops").METHODS[name.partition(",")[0]]
    assert found / 1e9 <= AT_MOST[name][0]
    assert 0.97 <= found / formula().flops <= 1  # the bounds of the GPU pages are of this count


@counting
@pytest.mark.parametrize("name", AT_MOST)
def test_backward_keeps_no_more_than_it_needs(name: str) -> None:
    assert counted(name).kept_bytes / 1e6 <= AT_MOST[name][1]


@counting
@pytest.mark.parametrize(
    "name",
    not_yet({"beit"}, METHODS, "a CPU has no fused attention with a learned bias, unlike a GPU"),
)
def test_no_product_in_float32_where_the_run_computes_in_half_precision(name: str) -> None:
    assert counted(name).float32_flops == 0


@counting
@pytest.mark.parametrize("name", ["dbot", "cmt_mae"])
def test_teachers_compute_as_the_run_does(name: str) -> None:
    found = counted(name)
    assert found.teachers_in_half == found.teachers > 0


# ------------------------------------------------------------------------------------------------------- tiny methods
def tiny_batch(method: Method, images: int = 4) -> Batch:
    """Random images, with all that any method needs."""
    needs = method.requirements
    first, second = torch.rand(2, images, needs.in_chans, *needs.image_size)
    labels, masks = torch.randint(5, (images,)), torch.randint(5, (images, *needs.image_size))
    return Batch(first, torch.arange(images), labels, 0, images, second, masks)


class AttentionCalls(TorchFunctionMode):
    """What runs inside attention layers, and whether a GPU's fused kernels take the operands."""

    LAYERS = (Attention, CrossAttention, PromptedAttention)
    PRODUCTS = ("matmul", "bmm", "baddbmm", "softmax", "einsum")

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.layers, self.fused, self.inside = 0, 0, False
        self.wrong: list[str] = []
        teachers = [part for teacher in method.modules() if isinstance(teacher, Teacher) for part in teacher.modules()]
        for part in method.modules():
            if isinstance(part, self.LAYERS) and part not in teachers:  # which never round on a CPU
                part.register_forward_pre_hook(lambda *_: self._enter(True))
                part.register_forward_hook(lambda *_: self._enter(False))

    def _enter(self, inside: bool) -> None:
        self.inside = inside
        self.layers += inside

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if self.inside and func is F.scaled_dot_product_attention:
            self.fused += 1
            *operands, bias = (*args[:3], args[3] if len(args) > 3 else (kwargs or {}).get("attn_mask"))
            self.wrong += [f"{part.dtype}, strides {part.stride()}" for part in operands if part.stride(-1) != 1]
            self.wrong += [str(part.dtype) for part in operands if part.dtype != torch.bfloat16]
            if bias is not None and bias.stride(-1) != 1:
                self.wrong.append(f"bias with strides {bias.stride()}: no fused kernel takes it")
        elif self.inside and getattr(func, "__name__", "") in self.PRODUCTS:
            self.wrong.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CASES)
def test_one_fused_attention_a_layer(name: str) -> None:
    method = CASES[name].build(100).train()
    batch = tiny_batch(method)
    draws = method.draw(batch, STEP, generator(0, STEP, CPU))
    with autocast(CPU, torch.bfloat16), (calls := AttentionCalls(method)):
        method(batch, draws)
    assert calls.fused == calls.layers
    assert not calls.wrong, calls.wrong


class Reads(TorchDispatchMode):
    """Values that are read from the device inside it, or tensors whose size depends on them: each waits for a GPU."""

    OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal")
    METHODS = ("tolist", "numpy", "cpu", "item", "__bool__", "__int__", "__float__")
    ON_A_CPU = ("core/host.py", "core/mask.py", "nn/mixing.py")  # branches for tensors of the CPU, and a check of torch

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def note(self, name: str) -> None:
        """Where it is, unless a GPU would not run it."""
        frames = [frame for frame in traceback.extract_stack() if "/pantomim/" in frame.filename]
        where = frames[-1].filename if frames else "elsewhere"
        if not where.endswith(self.ON_A_CPU):
            self.found[f"{name} at {where}:{frames[-1].lineno if frames else 0}"] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.overloadpacket.__name__
        chosen = args[1] if name in ("index", "index_put_") else ()
        if name in self.OPERATIONS or any(ids is not None and ids.dtype == torch.bool for ids in chosen):
            self.note(name)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Methods that read a tensor of the CPU without an operation, too."""
        note = self.note

        class Methods(TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
                if (name := getattr(func, "__name__", "")) in Reads.METHODS:
                    note(name)
                return func(*args, **(kwargs or {}))

        with self, Methods():
            yield


READERS = {"dvae", "vqkd"}


@pytest.mark.parametrize("name", not_yet(READERS, CASES, "one seed an image is read (dvae); the library reads (vqkd)"))
def test_a_step_reads_nothing_from_the_device(name: str) -> None:
    method = CASES[name].build(100)
    batch, training, watch = tiny_batch(method), training_of(method, 4), FiniteWatch(CPU)
    training.step(STEP - 1, [batch])  # the first sets up what stays
    with (reads := Reads()).watching():
        means = training.step(STEP, [batch])
        watch.see(STEP, means["loss"], means["grad_norm"])
    assert not reads.found, reads.found


# --------------------------------------------------------------------------------------------------- input and memory
def test_images_travel_as_bytes_and_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size, batch_size = (224, 224), 4
    settings: dict[str, Any] = {"batch_size": batch_size, "crop": Crop(), "seed": 0, "device": "cpu", "workers": 0}
    files = fill(tmp_path / "files", {f"{k}.png": png(k, (8 + k, 10)) for k in range(8)})
    decoded = Stream(open_source(str(files), "train"), image_size=size, **settings)
    read = decoded._read(0)
    assert read.images.nbytes == batch_size * 3 * 224 * 224  # 150,528 an image
    assert read.ids.nbytes == batch_size * 8

    put: list[int] = []
    original = Stream._put
    monkeypatch.setattr(Stream, "_put", lambda self, values: put.append(values.nbytes) or original(self, values))
    resident = Stream(
        open_source(str(tiny_images(tmp_path / "set.npz", side=20)), "train"), image_size=(16, 16), **settings
    )
    next(resident.batches(0, 1))
    assert sum(put) <= batch_size * 64  # ids, boxes, flips, labels: no pixel


FAULTS = """
import resource, sys, torch
from pathlib import Path
from pantomim.config import Pretrain, RuntimeConfig
from pantomim.core.batch import Batch
from pantomim.engine.runtime import start_accelerator
from pantomim.engine.training import Training
from pantomim.methods.mae import MAEConfig
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.vit import EncoderConfig

runtime = RuntimeConfig(device="cpu", threads=1, tracker="none")
accelerator = start_accelerator(runtime, Path(sys.argv[1]))
encoder = EncoderConfig(image_size=(32, 32), patch_size=4, width=192, depth=4, heads=3)
method = MAEConfig(encoder=encoder, decoder=DecoderConfig(width=128, depth=2, heads=4)).build()
training = Training(Pretrain("small", batch_size=64, runtime=runtime), method, 10, 0, accelerator)
for step in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    training.step(step, [Batch(torch.rand(64, 3, 32, 32), total=64)])
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts as Linux does")
def test_a_step_asks_the_system_for_no_memory_again(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FAULTS, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert int(done.stdout) < 5000

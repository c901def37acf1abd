"""The sections of `gpu.py`: what is measured, in the order of that file."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from gpu_bench import Bench, Step, build, compiled, modules
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain
from pantomim.core.batch import Batch
from pantomim.core.mask import Mask
from pantomim.data.augment import Augment
from pantomim.data.sources import open_source
from pantomim.data.stream import Stream
from pantomim.data.transforms import Crop
from pantomim.engine.pretrain import pretrain
from pantomim.engine.record import read_metrics
from pantomim.engine.runtime import generator
from pantomim.masking.block import BlockMasker
from pantomim.masking.color_noise import ColorNoiseMasker
from pantomim.masking.grid import GridMasker
from pantomim.masking.inverse_block import InverseBlockMasker
from pantomim.masking.noise import Noise
from pantomim.masking.random import RandomMasker
from pantomim.methods.base import Draws
from pantomim.nn.blocks import Block, stream_in_bfloat16
from pantomim.nn.tokens import standardise
from pantomim.tokenizers.dvae import DVAETokenizer

SMALL = "mae 192 x 12"
ATTENTION = {  # images, heads, tokens, width of a head, with a learned bias
    "encoder, 50 tokens": (512, 12, 50, 64, False),
    "decoder, 197 tokens": (512, 16, 197, 32, False),
    "all patches": (256, 12, 197, 64, False),
    "all patches, learned bias": (256, 12, 197, 64, True),
    "small net, 17 tokens": (4096, 3, 17, 64, False),
}


def run(names: list[str], options: argparse.Namespace) -> int:
    """Some sections, one after the other, as long as there is time."""
    warnings.filterwarnings("ignore")
    if options.dry:
        torch.set_num_threads(1)
    torch._dynamo.config.automatic_dynamic_shapes = False
    bench = Bench(options)
    for name in names:
        if time.time() > options.until:
            break
        bench.section = name
        bench.attempt(name, partial(globals()[name], bench))
    return 0


def method_section(bench: Bench, what: str, batch: int, eager: bool = True) -> Step:
    """Compiled with its kernels and parts, then eager, of the same weights."""
    step = compiled(bench, what, batch)
    bench.step(step, what, "compiled", step.images)
    step.parts(what)
    bench.kernels(step, what)
    if eager:
        with step.eager():
            bench.step(step, what, "eager", step.images)
    return step


# ------------------------------------------------------------------------------------------------------------ Ceilings
def probe(bench: Bench) -> None:
    with bench.card():
        values = torch.empty(2**16 if bench.dry else 2**30, device=bench.device).normal_()
        copy = torch.empty_like(values)
        bandwidth = 2 * values.nbytes / bench.measure(partial(copy.copy_, values), 0.3)["ms"] / 1e9
        del values, copy
        rates = {}
        for kind in ("bfloat16", "float16", "tf32", "float32"):
            with tf32(kind == "tf32"):
                rates[f"{kind}_tflops"] = bench.product(8192, getattr(torch, kind.replace("tf32", "float32")), 0.4)
        card, state = "none", ""
        if not bench.dry:
            card = torch.cuda.get_device_name()
            asked = "clocks.sm,clocks.mem,power.limit,temperature.gpu,memory.total,driver_version"
            command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
            state = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
        versions = {"torch": torch.__version__, "python": sys.version.split()[0], "cores": os.cpu_count()}
        bench.write("machine", card=card, state=state, **versions, copy_tb_s=bandwidth, **rates)
        for name, shape in ATTENTION.items():
            probe_attention(bench, name, *shape)


def probe_attention(bench: Bench, name: str, images: int, heads: int, tokens: int, width: int, biased: bool) -> None:
    """Forward and backward by each kernel, in milliseconds."""
    images, times = 1 if bench.dry else images, {}
    joined = torch.randn(images, tokens, 3, heads, width, device=bench.device, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.randn(1, heads, tokens, tokens, device=bench.device, dtype=torch.bfloat16) if biased else None
    operands = [part.transpose(1, 2) for part in joined.unbind(2)]
    if bias is not None:
        bias.requires_grad_()

    def run() -> None:
        out = F.scaled_dot_product_attention(*operands, bias)
        torch.autograd.grad(out, [*operands, *([] if bias is None else [bias])], out.detach())

    for kernel in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH", "default"):
        try:
            with nullcontext() if kernel == "default" else sdpa_kernel(getattr(SDPBackend, kernel)):
                times[kernel.lower()] = round(bench.measure(run, 0.1, 4, 20)["ms"], 3)
        except RuntimeError as error:  # it does not take these operands
            times[kernel.lower()] = type(error).__name__
    bench.write("part", what=f"attention of the {name}, ms", **times)


@contextmanager
def tf32(allowed: bool) -> Any:
    """Where float32 products may round their operands to ten bits."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


# ----------------------------------------------------------------------------------------------------------- MAE, masks
def mae(bench: Bench) -> None:
    method_section(bench, "mae-B", 512, eager=False)


def loop(bench: Bench) -> None:
    step = compiled(bench, "mae-B", 512)
    own_loop(bench, "mae-B", step, noise_images(bench, 256, 40))


def own_loop(bench: Bench, what: str, step: Step, source: str) -> None:
    """`pretrain` itself, on the graph that there is: does it reach the step's speed? On a GPU it adds that of crops."""
    every, stats = 4 if bench.dry else 10, torch._dynamo.utils.counters["stats"]
    runtime, graphs = replace(bench.runtime, log_every=every, compile=True), stats["unique_graphs"]
    config = Pretrain(
        "gpu", data=DataConfig(source=source), optim=OptimConfig(warmup=Duration(steps=2)), batch_size=step.images,
        duration=Duration(steps=2 * every if bench.dry else 60), runtime=runtime,
    )  # fmt: skip
    compiled_once = mock.patch("pantomim.engine.training.compile_whole")
    with tempfile.TemporaryDirectory() as folder, compiled_once:
        pretrain(config, Path(folder), method=step.method)
        rows = read_metrics(Path(folder) / "metrics.jsonl")
    found: dict[str, Any] = {name: [row.get(name) for row in rows] for name in ("images_per_s", "data_wait_s", "loss")}
    rate = sorted(found["images_per_s"][1:])[len(rows) // 2 - 1]
    found |= {"images_s": rate, "new_graphs": stats["unique_graphs"] - graphs}
    bench.write("loop", what=what, mode="the library's own loop", batch=step.images, **found)


def noise_images(bench: Bench, side: int, dry_side: int) -> str:
    """An array of random images, which lies on the card."""
    count, side = (64, dry_side) if bench.dry else (2048, side)
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    file = Path(tempfile.mkdtemp(prefix="pantomim-gpu-")) / "images.npz"
    np.savez(file, images=pixels, split=np.repeat("train", count))
    return str(file)


def masks(bench: Bench) -> None:
    step = compiled(bench, "mae-B", 512)
    green = ColorNoiseMasker(noise=Noise("green", patterns=16, side=64))
    step.method.masker = green  # type: ignore[assignment] - the forward pass does not read it
    bench.step(step, "mae-B, ColorMAE's masks", "compiled", step.images)
    blocks = BlockMasker(ratio=75 / 196), BlockMasker(ratio=75 / 196, exact=False)
    for masker in (RandomMasker(), green, *blocks, GridMasker(), InverseBlockMasker()):
        for count in (16,) if bench.dry else (512, 4096):

            def draw(masker: Any = masker, count: int = count) -> None:
                masker(count, (14, 14), generator(0, 1, bench.device))

            bench.part(f"masks: {masker.kind}", draw, count, batch=count, syncs=len(bench.reads(draw)))


def eager(bench: Bench) -> None:
    with bench.card():
        for batch in (4,) if bench.dry else (256, 512, 1024):
            step = Step(bench, build(bench, "mae-B"), batch)
            bench.step(step, "mae-B", "eager", step.images)


def mae_l(bench: Bench) -> None:
    method_section(bench, "mae-L", 256)


def half(bench: Bench) -> None:
    step = compiled(bench, "mae-B", 512, change=stream_in_bfloat16)
    bench.step(step, "mae-B, residual stream in bfloat16", "compiled", step.images)


def batches(bench: Bench) -> None:
    for batch in (1024, 256):
        step = compiled(bench, "mae-B", batch)
        bench.step(step, "mae-B", "compiled", step.images)
        bench.give(everything=True)


def tuned(bench: Bench) -> None:
    step = compiled(bench, "mae-B", 512, max_autotune_gemm=True, max_autotune_gemm_backends="ATEN,TRITON")
    bench.step(step, "mae-B, max-autotune", "compiled", step.images)


def regional(bench: Bench) -> None:
    with bench.card():
        step = Step(bench, build(bench, "mae-B"), 512)
    torch._dynamo.reset()
    backend = bench.backend()  # one for all, or they would share nothing
    for block in modules(step.method, Block):
        block.compile(fullgraph=True, dynamic=False, backend=backend)
    bench.compile_s, began = 0.0, time.time()
    step()
    first_s = time.time() - began
    bench.step(step, "mae-B, blocks compiled", "compiled", step.images, first_step_s=first_s)


# ------------------------------------------------------------------------------------------------------- Other methods
def cmt_mae(bench: Bench) -> None:
    step = method_section(bench, what := "cmt_mae-B", 256, eager=False)
    guides: Any = step.method.asked
    with step.eager(*guides):
        bench.step(step, what, "compiled, guides eager", step.images)
        for guide in guides:
            guide.float32 = True
        with mock.patch("pantomim.teachers.base.tf32", nullcontext):
            bench.step(step, what, "compiled, guides eager in float32", step.images)
    bench.step(step, what, "compiled, guides too, in TF32", step.images)  # as with guide_precision float32


def dbot(bench: Bench) -> None:
    method_section(bench, "dbot-B", 256)


def cae(bench: Bench) -> None:
    method_section(bench, "cae-B", 256)


def beit(bench: Bench) -> None:
    step = method_section(bench, "beit-B", 256)
    target, images = step.method.target, step.batches[0].images  # type: ignore[union-attr]
    expected, (tokenizer,) = target(images), modules(step.method, DVAETokenizer)

    def record(how: str) -> None:
        same = (target(images) == expected).float().mean().item()
        bench.part(f"tokenizer alone, {how}", lambda: target(images), step.images, ids_equal=same)

    record("float16 but for the last layer, channels last")  # the default
    tokenizer.float16 = False
    record("float32 with TF32")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        record("float32 without TF32")
    tokenizer.to(memory_format=torch.channels_last)
    record("float32 with TF32, channels last")


def agree(bench: Bench) -> None:
    for name in ("mae", "cmt_mae", "dbot", "beit", "cae"):
        with bench.card():
            step = Step(bench, build(bench, f"{name}-B", depth=2), 32)
        step.compile()
        draws = step.draws()
        with step.eager():
            exact, reference = step.gradients(draws, torch.float32)
            half_loss, half_gradients = step.gradients(draws, torch.bfloat16)
        loss, gradients = step.gradients(draws, torch.bfloat16)
        off = {"bfloat16": abs(half_loss - exact) / abs(exact), "compiled": abs(loss - half_loss) / abs(half_loss)}
        distances = {"bfloat16": half_gradients - reference, "compiled": gradients - half_gradients}
        of_gradients = {how: float(by.norm() / reference.norm()) for how, by in distances.items()}
        bench.write("agree", what=f"{name}, two blocks", loss=exact, loss_off=off, gradient_off=of_gradients)
        bench.give(everything=True)


# ---------------------------------------------------------------------------------------------------------------- Peers
def peers(bench: Bench) -> None:
    from rivals import transformers_mae
    from step import Setting, check_equal, training_step

    from pantomim.methods.mae import MAEConfig

    with bench.card():
        ours: Any = build(bench, "mae-B")
        config = MAEConfig(encoder=ours.encoder.config, decoder=ours.decoder.config)
        theirs = transformers_mae(ours, config).to(bench.device).train()
        few, count = 4, 4 if bench.dry else 512
        images = torch.rand(count, 3, *config.encoder.image_size, device=bench.device)
        shown = standardise(images, ours.encoder.mean, ours.encoder.std)
        noise = torch.rand(few, ours.encoder.num_patches, device=bench.device)
        mask = Mask.from_scores(noise, config.masker.num_masked(ours.encoder.grid))
        losses = {
            "pantomim": (ours, lambda: ours(Batch(images[:few], total=few), Draws(mask))["loss"]),
            "transformers": (theirs, lambda: theirs(shown[:few], noise=noise).loss),
        }
        check_equal(losses)
        setting = Setting(bench.device, bf16=True, compiled=False)
        step, what = training_step(theirs, lambda: theirs(shown).loss, setting), "transformers ViTMAE, B"
        bench.step(step, what, "eager", count, "mae-B")
        if bench.options.mae:
            official(bench, config, shown)
    torch._dynamo.reset()
    bench.compile_s = 0.0
    theirs.compile(fullgraph=True, dynamic=False, backend=bench.backend())
    step()
    bench.step(step, what, "compiled", count, "mae-B")
    bench.kernels(step, what)


def official(bench: Bench, config: Any, shown: Tensor) -> None:
    """facebookresearch/mae as its authors run it, on today's timm and NumPy: float16 with a scaler."""
    import timm.models.vision_transformer as timm_vit

    block, np.float = timm_vit.Block, float  # type: ignore[attr-defined] - an alias that NumPy has dropped
    timm_vit.Block = lambda *args, qk_scale=None, **named: block(*args, **named)  # as an argument that timm has
    sys.path.insert(0, bench.options.mae)
    try:
        import models_mae
    finally:
        sys.path.remove(bench.options.mae)
    encoder, decoder = config.encoder, config.decoder
    model = models_mae.MaskedAutoencoderViT(
        img_size=encoder.image_size[0], patch_size=encoder.patch_size, embed_dim=encoder.width, depth=encoder.depth,
        num_heads=encoder.heads, decoder_embed_dim=decoder.width, decoder_depth=decoder.depth,
        decoder_num_heads=decoder.heads, mlp_ratio=4, norm_layer=partial(nn.LayerNorm, eps=1e-6), norm_pix_loss=True,
    ).to(bench.device)  # fmt: skip
    timm_vit.Block = block
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, betas=(0.9, 0.95))
    scaler = torch.amp.GradScaler(bench.device.type, enabled=not bench.dry)

    def step() -> float:
        with torch.autocast(bench.device.type, dtype=torch.bfloat16 if bench.dry else torch.float16):
            loss = model(shown, mask_ratio=0.75)[0]
        value = loss.item()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return value

    bench.step(step, "facebookresearch/mae, B", "eager, float16", len(shown), "mae-B")


# ---------------------------------------------------------------------------------------------------------------- Input
def input(bench: Bench) -> None:
    batch, size = (8, (32, 32)) if bench.dry else (512, (224, 224))
    settings = {"batch_size": batch, "image_size": size, "crop": Crop(), "seed": 0, "device": bench.device}
    source = open_source(noise_images(bench, 256, 40), "train")
    ways: dict[str, dict[str, Any]] = {
        "random resized crop": {},
        "random resized crop, eager": {"compiled": False},
        "and BEiT's jitter": {"augment": Augment(jitter=(0.4, 0.4, 0.4, 0.0))},
        "and RandAugment, erasing": {"augment": Augment(rand_augment=2, erasing=0.25)},
    }
    with bench.card():
        for what, way in ways.items():
            steps = Stream(source, **settings | {"compiled": bench.to_code} | way).batches(0, 10_000)
            next(steps)  # compiles
            syncs = len(bench.reads(partial(next, steps)))
            bench.part(f"resident images, {what}", partial(next, steps), batch, syncs=syncs)
        jpeg_input(bench, settings)


def jpeg_input(bench: Bench, settings: dict[str, Any]) -> None:
    """Photographs of 500 x 375, decoded by workers, without a step."""
    from PIL import Image

    folder, rng = Path(tempfile.mkdtemp(prefix="pantomim-gpu-")), np.random.default_rng(0)
    count, workers = (16, 1) if bench.dry else (2048, os.cpu_count() or 1)
    coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    for number in range(min(count, 256)):
        smooth = np.asarray(Image.fromarray(np.roll(coarse, number, axis=(0, 1))).resize((500, 375)), dtype=np.int16)
        noisy = (smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number:05}.jpg", quality=95)
    for number in range(256, count):
        os.link(folder / f"{number % 256:05}.jpg", folder / f"{number:05}.jpg")
    steps = Stream(open_source(str(folder), "train"), workers=workers, **settings).batches(0, 10_000)
    for _ in range(2 if bench.dry else workers):
        next(steps)
    bench.part(f"JPEG through {workers} workers", partial(next, steps), settings["batch_size"])
    steps.close()


# -------------------------------------------------------------------------------------------------------- The small net
def small_net(bench: Bench) -> None:
    step = method_section(bench, SMALL, 4096)
    own_loop(bench, SMALL, step, bench.options.data or noise_images(bench, 32, 32))


def graphs(bench: Bench) -> None:
    with bench.card():
        step = Step(bench, build(bench, SMALL), 512)
        torch._dynamo.reset()
        way = {"backend": bench.backend()} if bench.dry else {"mode": "reduce-overhead"}
        step.method.compile(fullgraph=True, dynamic=False, **way)

        def marked() -> None:
            torch.compiler.cudagraph_mark_step_begin()
            step()

        for _ in range(4):
            marked()
        bench.step(marked, SMALL, "compiled, CUDA graphs", step.images)
        bench.kernels(marked, f"{SMALL}, CUDA graphs")

"""Recipes of dBOT: stages whose teacher is the encoder of the stage before, and one stage with CLIP as its teacher.

Paper: Liu et al. 2024, *Exploring Target Representations for Masked Autoencoders*, arXiv:2209.03917; the numbers are
those of the authors' code (github.com/liuxingbin/dbot, `PRETRAIN.md`, and where it is silent `main_pretrain.py`), the
scores those of its README. The code is MAE's, and in its branch beit BEiT's; so are all numbers that are not named.
"""

from dataclasses import replace
from typing import Any, Literal

from pantomim.config import DataConfig, Duration, Pretrain
from pantomim.data.transforms import Crop
from pantomim.masking.block import BlockMasker
from pantomim.methods.beit import BEiTConfig, beit_encoder
from pantomim.methods.dbot import DBOTConfig
from pantomim.nn.vit import ENCODER_SIZES
from pantomim.recipes import beit, clip, mae
from pantomim.recipes.recipe import BASE_WIDTH, NOT_MEASURED, ON_CIFAR10, Family, Scale, scale, with_parts
from pantomim.teachers.choice import TeacherConfig

Size = Literal["base", "large", "huge"]


def in1k(size: Size) -> Pretrain:
    """`PRETRAIN.md`; one stage of two."""
    drop_path = 0.3 if size == "huge" else 0.2  # of the encoder and of the decoder
    run: Any = mae.in1k(size)  # batch of 4096: 128 on each of 32 GPUs
    method = DBOTConfig(
        encoder=replace(run.method.encoder, drop_path=drop_path),
        decoder=replace(run.method.decoder, drop_path=drop_path),  # models_mae.py: 512 wide, 8 deep
        masker=run.method.masker,
        # --init_teacher_encoder_depth: 12 of ViT-B; of ViT-L and ViT-H 0, projected patches with their positions
        teacher=TeacherConfig(source="random", depth=None if size == "base" else 0),
    )
    optim = replace(run.optim, clip_norm=3.0 if size == "base" else None)  # warm-up of 40 epochs in every stage
    return replace(run, method=method, optim=optim, duration=Duration(epochs=800))


def clip_in1k(size: Size) -> Pretrain:
    """The authors' branch beit (`PRETRAIN.md`, `run.sh`): one stage, symmetric, CLIP teaches."""
    encoder = replace(
        beit_encoder("base"),  # layer scale of 0.1, of ViT-L and ViT-H too
        patch_size=14 if size == "huge" else 16,
        **ENCODER_SIZES[size],
    )
    masker = BlockMasker(ratio=78 / (encoder.grid[0] * encoder.grid[1]), exact=False)  # 78 patches of any grid
    run = beit.in1k("base")
    return replace(
        run,
        data=DataConfig(crop=Crop(scale=(0.4, 1.0), flip=True), augment=beit.JITTER),
        method=BEiTConfig(encoder=encoder, masker=masker, target=clip.TARGET),
        optim=replace(run.optim, base_lr=3e-3 * 256 / 4096, betas=(0.9, 0.98), eps=1e-6),  # 3e-3 at 4096
        batch_size=4096,
        duration=Duration(epochs=1600),
    )


def rescale(paper: Pretrain, to: Scale) -> Pretrain:
    """All blocks teach first; gradients are clipped at any size, and stochastic depth is for ViT-B and above."""
    published: Any = paper.method
    run: Any = scale(with_parts(paper, teacher=TeacherConfig(source="random")), to)
    run = replace(run, optim=replace(run.optim, clip_norm=3.0))
    encoder = run.method.encoder
    if encoder.width < BASE_WIDTH:
        return run
    drop_path = published.decoder.drop_path
    encoder = encoder if to.start is not None else replace(encoder, drop_path=drop_path)
    return with_parts(run, encoder=encoder, decoder=replace(run.method.decoder, drop_path=drop_path))


DBOT = Family(
    "dbot",
    "dBOT in two stages",
    in1k,
    {
        "base": (NOT_MEASURED, "84.5 fine-tuned (the authors' README)"),
        "large": (NOT_MEASURED, "86.6 fine-tuned (the authors' README)"),
        "huge": (NOT_MEASURED, "87.4 fine-tuned, 88.0 at 448 (the authors' README)"),
    },
    small=ON_CIFAR10,
    rescale=rescale,
    bare="dbot",
    idea="a teacher's features, in two stages: the first trains the teacher of the second",
    notes=(
        "stages: each begins with a new student and a new optimiser; the authors' keeps the bias of the patch "
        "projection and AdamW's state, as reinit reference does",
    ),
    stages=2,  # PRETRAIN.md: 0 800 1600; the reviews of the paper have 3 for detection and segmentation
)
DBOT_CLIP = Family(
    "dbot_clip",
    "dBOT in one stage, symmetric, with CLIP as its teacher",
    clip_in1k,
    {
        "base": (NOT_MEASURED, "85.7 fine-tuned (the authors' README)", clip.CLIP_NOTE + "B/16"),
        "large": (NOT_MEASURED, "87.8 fine-tuned (the authors' README)", clip.CLIP_NOTE + "L/14"),
        "huge": (NOT_MEASURED, "88.5 fine-tuned, 89.1 at 448 (the authors' README)", clip.CLIP_NOTE + "L/14"),
    },
    notes=(beit.JITTER_NOTE,),
)

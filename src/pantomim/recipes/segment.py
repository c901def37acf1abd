"""Recipes of semantic segmentation: UPerNet on ADE20K as each paper trains it, and what we make of that for other sets.

Common to all: 160,000 steps of 16 crops of 512x512, AdamW (0.9, 0.999), weight decay 0.05 also of tokens and positions
(the authors' code means to spare them and does not), 1,500 steps of warm-up from 1e-6 of the rate, then linearly to 0;
windows of 512 every 341 pixels in the test. The best rate falls as pre-training improves (CAE states it): compare
encoders at two rates each, or say that one was used.
"""

from dataclasses import replace
from functools import partial

from pantomim.config import DataConfig, Duration, MaskConfig, Pretrain, Validation
from pantomim.data.distortion import Distortion
from pantomim.data.mask_crops import MaskCrop
from pantomim.methods.segment import SegmentConfig
from pantomim.nn.segmenter import UPerNetConfig
from pantomim.recipes.finetune import encoder_for
from pantomim.recipes.recipe import BASE_WIDTH, BEIT_ENCODER, CAE_ENCODER, Numbers, Preset, Scale, choose_patch


def ade20k(preset: Preset, size: str) -> Pretrain:
    """A preset's recipe of one size on ADE20K; scores are mIoU."""
    row, encoder = preset.sizes[size], preset.encoder_of(size, (512, 512), relative_position="blocks")
    return Pretrain(
        recipe="segment",
        data=DataConfig(masks=MaskConfig()),
        method=SegmentConfig(encoder=encoder, head=UPerNetConfig(), **preset.parts),
        optim=preset.optim_of(size, start_lr=1e-6 * row.lr, warmup=Duration(steps=1500), decay_tokens=True),
        batch_size=row.batch,
        duration=Duration(steps=160_000),
        validation=Validation(every=16_000),
    )


numbers = partial(Numbers, batch=16, layer_scale=1.0)
DBOT = {
    "base": numbers(1e-4, 0.65, 0.2, "49.5 mIoU (teacher ViT-B)"),
    "large": numbers(3e-5, 0.95, 0.2, "54.5 mIoU (teacher ViT-L)"),
}
PRESETS = {
    "mae": Preset(
        "MAE",
        {"base": numbers(1e-4, 0.65, 0.1, "48.1 mIoU (the paper's, whose rate is not stated)")},
        "rate, layer decay and drop path: mmsegmentation's, as the authors state none",
        schedule="poly",
    ),
    "beit": Preset(  # upernet_beit_base_12_512_slide_160k_ade20k_pt.py
        "BEiT",
        {
            "base": numbers(7e-4, 0.65, 0.1, "45.6 mIoU (the paper's, with another head)", layer_scale=0.1),
            "large": numbers(2e-5, 0.95, 0.2, "not stated", layer_scale=1e-6),
        },
        "ViT-L: the authors give numbers only after fine-tuning on ImageNet-22K, and these are they",
        encoder=BEIT_ENCODER,
        schedule="mmcv",
    ),
    "cae": Preset(
        "CAE",
        {
            "base": numbers(1e-4, 0.65, 0.1, "50.3 mIoU (1600 epochs)", layer_scale=0.1),
            "large": numbers(4e-5, 0.95, 0.15, "54.9 mIoU (1600 epochs)", layer_scale=1e-5),
        },
        "rate of ViT-B: 3e-4 after 300 epochs of pre-training, 2e-4 after 800, 1e-4 after 1600",
        {"learn_positions": False},
        CAE_ENCODER,
        schedule="mmcv",
    ),
    "dbot": Preset(
        "dBOT", DBOT, "with a teacher of CLIP's: other numbers (see the paper's branch beit)", schedule="mmcv"
    ),
    "colormae": Preset(
        "ColorMAE",
        {
            "base": numbers(1e-4, 0.65, 0.1, "49.3 mIoU (1600 epochs)"),
            "large": numbers(9e-5, 0.75, 0.2, "51.5 mIoU (800 epochs)"),
        },
        "the authors train in float32",
        schedule="poly",
    ),
    "cmt_mae": Preset(
        "CMT-MAE (a default of ours: dBOT's)",
        {"base": replace(DBOT["base"], score="not stated")},
        "CMT-MAE's authors state no recipe: all numbers are dBOT's of ViT-B",
        schedule="mmcv",
    ),
}


# Ours, for other sets than ADE20K.
LARGE = 10_000  # images, from which on a set takes the paper's numbers
STEPS, BATCH = 1500, 8
PEAK_LR = 5e-4  # of encoders narrower than ViT-B, with a layer decay of 0.75
CHANNELS = 64  # of the heads of such encoders, at most
MAX_CROP = 192  # side of a crop where the encoder is narrow


def rescale(paper: Pretrain, to: Scale) -> Pretrain:
    """A paper's recipe for other images, masks and encoders: one rule for all presets, and ours.

    Small sets train for 1,500 steps of 8 crops. A crop is as large as the images' shorter side, in whole patches, up to
    512 (192 for narrow encoders, whose heads are 64 wide and whose rate is 5e-4 with a layer decay of 0.75); images are
    resized to 0.75 to 1.5 times that side first. Colours are distorted only where there are three of 8 or 16 bits; of
    others brightness, a quarter as much, and contrast, half as much. Drop path is 0.1 at most. Layer scales that an
    encoder lacks are new and 1, with which it computes what it did.
    """
    facts, method, masks = to.facts, paper.method, paper.data.masks
    assert isinstance(method, SegmentConfig)
    assert masks is not None
    if facts.num_classes is None:
        raise ValueError("segment must have masks to learn from; got images without them.")
    if to.start is None:
        to = replace(to, start=replace(to.encoder_like(method.encoder), layer_scale=method.encoder.layer_scale))
    encoder = encoder_for(method.encoder, to)
    narrow, large = encoder.width < BASE_WIDTH, facts.num_images >= LARGE
    shorter = facts.median_shorter_side
    patch = encoder.patch_size if to.start is not None else choose_patch((shorter, shorter))
    side = max(min(shorter, MAX_CROP if narrow else 512) // patch, 2) * patch
    drop_path = encoder.drop_path if large else min(encoder.drop_path, 0.1)
    encoder = replace(encoder, image_size=(side, side), layer_scale=encoder.layer_scale or 1.0, drop_path=drop_path)
    distortion = Distortion() if to.in_colour else Distortion(brightness=8, contrast=(0.75, 1.25))
    crop = masks.crop if large else MaskCrop(base=(4 * side, side), ratio=(0.75, 1.5))
    crop = replace(crop, distortion=distortion, fill=encoder.mean)
    steps, batch_size = (160_000, paper.batch_size) if large else (STEPS, min(BATCH, max(2, facts.num_images // 4)))
    optim = paper.optim if large else replace(paper.optim, warmup=Duration(steps=steps // 20))
    if narrow:
        optim = replace(optim, base_lr=PEAK_LR * 256 / batch_size, start_lr=1e-6 * PEAK_LR, layer_decay=0.75)
    head = UPerNetConfig(channels=min(CHANNELS, encoder.width), auxiliary_channels=CHANNELS) if narrow else method.head
    return replace(
        paper,
        data=replace(to.data, masks=replace(masks, crop=crop)),
        method=replace(method, encoder=encoder, num_classes=facts.num_classes, head=head),
        optim=optim,
        batch_size=batch_size,
        duration=Duration(steps=steps),
        validation=Validation(every=max(1, steps // 10)),
    )


HOW = {"rescale": rescale, "trains": "segmenter", "data": "ADE20K"}
SEGMENTING = tuple(preset.family(f"segment_{name}", "Segmentation", ade20k, **HOW) for name, preset in PRESETS.items())

"""Recipes of BEiT.

Paper: Bao et al. 2022, *BEiT: BERT Pre-Training of Image Transformers*, arXiv:2106.08254; the numbers are those of
Table 12 and, where it is silent, of the authors' code (github.com/microsoft/unilm, `beit/`).
"""

from typing import Literal

from pantomim.config import DataConfig, Duration, OptimConfig, Pretrain
from pantomim.data.augment import Augment
from pantomim.data.transforms import Crop
from pantomim.masking.block import BlockMasker
from pantomim.methods.beit import BEiTConfig, beit_encoder
from pantomim.recipes.recipe import NOT_MEASURED, ON_CIFAR10, Family
from pantomim.targets.tokens import TokenTargetConfig

# datasets.py: brightness, contrast and saturation; section 2.5 says "color jittering" without the strength.
JITTER = Augment(jitter=(0.4, 0.4, 0.4, 0.0))
JITTER_NOTE = "colour jitter: after the crop, where the authors' comes before; contrast turns about the part's mean"
_LINEAR = "linear from a middle layer (the paper's, Tables 1 and 9)"
POSITIONS = "positions: relative alone, as in the authors' code; the paper adds learned absolute ones (section 2.1)"


def in1k(size: Literal["base", "large"]) -> Pretrain:
    """Table 12 and the code, field by field."""
    return Pretrain(
        recipe="beit",
        data=DataConfig(crop=Crop(scale=(0.08, 1.0), flip=True), augment=JITTER),  # datasets.py: torchvision's range
        method=BEiTConfig(
            encoder=beit_encoder(size, drop_path=0.1),  # Table 12
            masker=BlockMasker(ratio=75 / 196, exact=False),  # section 2.5: at most 75; min_area 16 in the code
            target=TokenTargetConfig(),  # section 2.5: DALL-E's 8192 ids; a tokenizer of one's own may have others
        ),
        optim=OptimConfig(
            base_lr=1.5e-3 * 256 / 2048,  # Table 12: 1.5e-3 at 2048
            min_lr=1e-5,  # Table 12
            warmup=Duration(epochs=10),  # the code's README
            weight_decay=0.05,  # Table 12
            schedule="beit",  # utils.py
            decay_tokens=False,  # optim_factory.py: no class token, no positions, ...
            decay_mask_token=True,  # ... but the mask token
            betas=(0.9, 0.999),  # Table 12
            clip_norm=1.0 if size == "large" else 3.0,  # Table 12
        ),
        batch_size=2048,  # Table 12
        duration=Duration(epochs=800),  # section 2.5
    )


BEIT = Family(
    "beit",
    "BEiT",
    in1k,
    {
        "base": ("5 days on 16 V100 of 32 GB (section 2.5)", f"83.2 fine-tuned, 56.7 {_LINEAR}"),
        "large": (f"{NOT_MEASURED}; the paper gives ViT-B's only", f"85.2 fine-tuned, 73.5 {_LINEAR}"),
    },
    small=ON_CIFAR10,
    bare="beit",
    idea="ids that a tokenizer gives masked patches, which the encoder sees as mask tokens",
    notes=(JITTER_NOTE, POSITIONS),
)

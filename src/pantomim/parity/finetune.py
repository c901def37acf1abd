"""Losses and mixing that fine-tuning shares between methods, rebuilt with what our trainers use."""

from torch import Tensor
from torch.nn import functional as F

from pantomim.nn.mixing import Mixing, cutmix_lam, mix_images, mix_targets
from pantomim.parity.item import Computed, Item


def losses(item: Item) -> Computed:
    """Label smoothing, soft targets, mixup and CutMix. Official: timm 0.3.2."""
    config = item.config
    logits, labels, images = item.input("logits"), item.input("labels"), item.input("images")
    size = (images.shape[2], images.shape[3])
    outputs: dict[str, Tensor] = {}
    for smoothing in config["smoothing"]:
        outputs[f"label_smoothing_ce_{smoothing}"] = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        for lam in config["lam"]:
            target = mix_targets(labels, config["num_classes"], lam, smoothing, dtype=logits.dtype)
            outputs[f"mixup_target_lam{lam}_smoothing{smoothing}"] = target
            outputs[f"soft_target_ce_lam{lam}_smoothing{smoothing}"] = F.cross_entropy(logits, target)
    for lam in config["lam"]:
        outputs[f"mixup_images_lam{lam}"] = mix_images(images, Mixing(lam))
    for index, (top, bottom, left, right) in enumerate(config["boxes"]):
        box = (top, bottom, left, right)
        lam = cutmix_lam(box, size)
        outputs[f"cutmix_images_box{index}"] = mix_images(images, Mixing(lam, box))
        outputs[f"cutmix_lambda_box{index}"] = images.new_tensor([lam])
    return Computed(outputs)

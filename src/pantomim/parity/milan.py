"""Masks that attention guides: MILAN's pre-training and its sampling, AttMask's three kinds, rebuilt with our modules.

Official: zejiangh/MILAN and gkakogeorgiou/attmask. Visible patches are in the order of the draw there and in raster
order here; what is compared is put into the official order.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.core.mask import Mask
from pantomim.formats.mae import official_name
from pantomim.masking.attention import AttentionMasker, draw_order, published
from pantomim.methods.milan import MILANConfig
from pantomim.parity import networks
from pantomim.parity.dbot import GivenTeacher
from pantomim.parity.item import Computed, Item
from pantomim.parity.statistics import off_mean, off_shares

DRAWS = 20_000  # own masks of each setting


def pretrain(item: Item) -> Computed:
    """The mask of a given order, encoder, prompting decoder, the loss over all tokens, every gradient."""
    images, order, config = item.input("images"), item.input("ids_shuffle"), item.config
    method = MILANConfig(
        encoder=networks.encoder_config(config, images),
        decoder=networks.decoder_config(config),
        masker=published("milan", config["mask_ratio"]),
    )
    teacher = GivenTeacher(item.input("teacher_tokens"), method.encoder.grid, item.input("teacher_attention"))
    model = method.build(1, teacher).double()
    networks.fill(model, item.weights(), official_name, item.name)

    ids_restore = order.argsort(dim=1)
    late = ids_restore.double()  # in the order
    mask = Mask.from_scores(late, method.masker.num_masked(method.encoder.grid))
    batch = Batch(images, total=len(images))
    draws = replace(model.draw(batch, 0, torch.Generator().manual_seed(0)), mask=mask)
    loss = model(batch, draws)["loss"]
    gradients, gradient_norms = networks.backward(loss, model, official_name)
    latent = model.encoder(images, mask.ids_keep)
    kept, ids = networks.in_order(mask, late)
    outputs = gradients | {
        "latent": networks.joined(latent, kept),
        "mask": mask.masked,
        "ids_restore": ids_restore,
        "ids_keep": ids[:, : kept.shape[1]],
        "ids_dump": ids[:, kept.shape[1] :],
        "pred_with_cls": model.decoder(latent, mask, everywhere=True, with_class=True),
        "loss": loss.reshape(1),
    }
    return Computed(outputs, numbers={"gradient_l2_norms": gradient_norms}, config=networks.norm_eps(model))


def sampling(item: Item) -> Computed:
    """How often each patch, and each pair, is visible, and each the first, in many draws of our own."""
    deviations: dict[str, float] = {}
    official_draws = item.config["draws"]
    stored = {name: tensor for name, (tensor, _) in item.expected().items()}
    for index, setting in enumerate(item.config["settings"]):
        weights = item.input(f"importance_{index}").expand(DRAWS, -1)
        generator, count = torch.Generator().manual_seed(index), weights.shape[1]
        masker = published("milan", setting["mask_ratio"])
        visible = (~masker(DRAWS, (1, count), generator, weights).masked).double()
        first = F.one_hot(draw_order(weights, 0.0, generator).argmax(dim=1), count).double().mean(dim=0)
        ours = {
            f"visible_probability_{index}": (visible.mean(dim=0), official_draws),
            f"visible_probability_exact_{index}": (visible.mean(dim=0), math.inf),
            f"first_drawn_probability_{index}": (first, official_draws),
            f"pair_visible_probability_{index}": (visible.mT @ visible / DRAWS, official_draws),
        }
        for name, (found, draws) in ours.items():
            if (want := stored.get(name)) is not None:
                deviations[name] = off_shares(want.double().numpy(), draws, found.numpy(), DRAWS)
        if "settings" in item.numbers:
            stated = item.numbers["settings"][index]
            means = (visible * weights.argsort().argsort()).sum(dim=1) / visible.sum(dim=1)
            rank, spread = "mean_importance_rank_of_visible", means.std().item()
            deviations[f"numbers/settings/{index}/{rank}"] = off_mean(
                stated[rank], spread, official_draws, means.numpy()
            )
            same = int(visible[0].sum()) == stated["visible"]
            deviations[f"numbers/settings/{index}/visible"] = 0.0 if same else math.inf
    return Computed({}, deviations=deviations)


def attmask(item: Item) -> Computed:
    """High and low masks, exactly; how often hints mask each patch; all counts."""
    attention = item.input("attention")
    generator, grid = torch.Generator().manual_seed(0), (1, attention.shape[1])
    outputs: dict[str, Tensor] = {}
    settings = []
    for ratio in item.config["ratios"]:
        for name, masker in (("high", published("attmask_high", ratio)), ("low", published("attmask_low", ratio))):
            outputs[f"attmask_{name}_{ratio}"] = masker(len(attention), grid, generator, attention).masked
        settings.append({"ratio": ratio, "masked": masker.num_masked(grid)})
    numbers: dict[str, Any] = {"settings": settings}
    deviations: dict[str, float] = {}
    want, _ = item.expected().get("hint_mask_probability", (None, {}))
    if want is not None:
        stated, hint = item.numbers["hint"], _hint(item.config["hint"])
        masked, shown, among = hint.counts(grid)
        drawn = [hint(DRAWS, grid, generator, row.expand(DRAWS, -1)).masked.double() for row in attention]
        shares = torch.stack([each.mean(dim=0) for each in drawn])
        numbers["hint"] = {**stated, "masked_top": masked, "candidate_top": among, "revealed": shown}
        kept = int(drawn[0][0].sum()) == stated["masked_top"] - stated["revealed"]
        deviations = {
            "hint_mask_probability": off_shares(want.double().numpy(), stated["draws"], shares.numpy(), DRAWS),
            "hint/masked": 0.0 if kept else math.inf,
        }
    return Computed(outputs, numbers, deviations=deviations)


def _hint(hint: dict[str, float]) -> AttentionMasker:
    """The preset with the shares of the item."""
    return replace(published("attmask_hint", hint["ratio"]), hint_show=hint["show_ratio"], hint_among=hint["show_max"])


ITEMS = {"milan_pretrain": pretrain, "milan_sampling": sampling, "attmask": attmask}

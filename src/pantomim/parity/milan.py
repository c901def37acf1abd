"""Masks that attention guides: MILAN's pre-training and its sampling, AttMask's three kinds, rebuilt with our modules.

Official: zejiangh/MILAN and gkakogeorgiou/attmask.
"""

import math
from dataclasses import replace

import torch
from torch.nn import functional as F

from pantomim.core.mask import Mask
from pantomim.formats.mae import official_name
from pantomim.masking.attention import Preset, draw_order, published
from pantomim.methods.milan import MILANConfig
from pantomim.parity import networks
from pantomim.parity.dbot import GivenTeacher
from pantomim.parity.item import Computed, Item, exact
from pantomim.parity.statistics import off_mean, off_shares

DRAWS = 20_000  # own masks of each setting


def milan_pretrain(item: Item) -> Computed:
    """The mask of a given order, encoder, prompting decoder, the loss over all tokens, every gradient."""
    encoder, decoder = networks.encoder_config(item), networks.decoder_config(item)
    method = MILANConfig(encoder=encoder, decoder=decoder, masker=published("milan", item.config["mask_ratio"]))
    teacher = GivenTeacher(item.input("teacher_tokens"), encoder.grid, item.input("teacher_attention"))
    model = networks.filled(item, method.build(1, teacher), official_name)

    late = item.input("ids_shuffle").argsort(dim=1).double()  # in the order
    mask = Mask.from_scores(late, method.masker.num_masked(encoder.grid))
    batch = networks.batch(item)
    draws = replace(model.draw(batch, 0, torch.Generator().manual_seed(0)), mask=mask)
    loss = model(batch, draws)["loss"]
    found, latent = networks.backward(item, loss, model, official_name), model.encoder(batch.images, mask.ids_keep)
    kept, masking = networks.in_order(mask, late)
    found.outputs |= masking | {
        "latent": networks.joined(latent, kept),
        "pred_with_cls": model.decoder(latent, mask, everywhere=True, with_class=True),
        "loss": loss,
    }
    return found


def milan_sampling(item: Item) -> Computed:
    """How often each patch, and each pair, is visible, and each the first, in many draws of our own."""
    errors, official_draws = dict[str, float](), item.config["draws"]
    for index, setting in enumerate(item.config["settings"]):
        weights = item.input(f"importance_{index}").expand(DRAWS, -1)
        generator, count = torch.Generator().manual_seed(index), weights.shape[1]
        masker = published("milan", setting["mask_ratio"])
        visible = (~masker(DRAWS, (1, count), generator, weights).masked).double()
        first = F.one_hot(draw_order(weights, 0.0, generator).argmax(dim=1), count).double().mean(dim=0)
        for name, ours, draws in (
            ("visible_probability", visible.mean(dim=0), official_draws),
            ("visible_probability_exact", visible.mean(dim=0), math.inf),
            ("first_drawn_probability", first, official_draws),
            ("pair_visible_probability", visible.mT @ visible / DRAWS, official_draws),
        ):
            if (stored := item.output(f"{name}_{index}")) is not None:
                errors[f"{name}_{index}"] = off_shares(stored.double().numpy(), draws, ours.numpy(), DRAWS)
        if "settings" in item.numbers:
            stated, key = item.numbers["settings"][index], f"numbers/settings/{index}"
            means = (visible * weights.argsort().argsort()).sum(dim=1) / visible.sum(dim=1)
            rank = "mean_importance_rank_of_visible"
            errors[f"{key}/{rank}"] = off_mean(stated[rank], means.std().item(), official_draws, means.numpy())
            errors[f"{key}/visible"] = exact(int(visible[0].sum()) == stated["visible"])
    return Computed(errors=errors)


def attmask(item: Item) -> Computed:
    """High and low masks, exactly; how often hints mask each patch; all counts."""
    attention, found = item.input("attention"), Computed(numbers={"settings": []})
    presets: tuple[Preset, ...] = ("attmask_high", "attmask_low")
    generator, grid = torch.Generator().manual_seed(0), (1, attention.shape[1])
    for ratio in item.config["ratios"]:
        for preset in presets:
            masker = published(preset, ratio)
            found.outputs[f"{preset}_{ratio}"] = masker(len(attention), grid, generator, attention).masked
        found.numbers["settings"].append({"ratio": ratio, "masked": masker.num_masked(grid)})
    if (probability := item.output("hint_mask_probability")) is not None:
        stated, shares = item.numbers["hint"], item.config["hint"]
        hint = published("attmask_hint", shares["ratio"])
        hint = replace(hint, hint_show=shares["show_ratio"], hint_among=shares["show_max"])
        masked, shown, among = hint.counts(grid)
        drawn = [hint(DRAWS, grid, generator, row.expand(DRAWS, -1)).masked.double() for row in attention]
        ours = torch.stack([each.mean(dim=0) for each in drawn]).numpy()
        found.numbers["hint"] = {**stated, "masked_top": masked, "candidate_top": among, "revealed": shown}
        kept = int(drawn[0][0].sum()) == stated["masked_top"] - stated["revealed"]
        off = off_shares(probability.double().numpy(), stated["draws"], ours, DRAWS)
        found.errors = {"hint_mask_probability": off, "hint/masked": exact(kept)}
    return found

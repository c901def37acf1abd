"""Masks that attention guides: MILAN's pre-training and its sampling, AttMask's three kinds, rebuilt with our modules.

Official: zejiangh/MILAN and gkakogeorgiou/attmask. Visible patches are in the order of the draw there and in raster
order here; what is compared is put into the official order.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from pantomim.core.batch import Batch
from pantomim.core.mask import Mask
from pantomim.formats.files import load_exactly
from pantomim.formats.mae import official_name, our_name
from pantomim.masking.attention import AttentionMasker, draw_order, published
from pantomim.methods.milan import MILANConfig
from pantomim.nn.decoder import DecoderConfig
from pantomim.nn.tokens import take
from pantomim.nn.vit import EncoderConfig
from pantomim.parity.compare import gradients, norm_eps, norms
from pantomim.parity.item import Computed, Item
from pantomim.teachers.base import Guidance, Query, Teacher

DRAWS = 20_000  # own masks of each setting
SIGMAS = 5.0  # standard errors, of both sides together, that chance explains


def pretrain(item: Item) -> Computed:
    """The mask of a given order, encoder, prompting decoder, the loss over all tokens, every gradient."""
    images, order, sizes = item.input("images"), item.input("ids_shuffle"), item.config
    config = MILANConfig(
        encoder=EncoderConfig(
            image_size=(images.shape[2], images.shape[3]),
            patch_size=sizes["patch_size"],
            in_chans=images.shape[1],
            width=sizes["embed_dim"],
            depth=sizes["depth"],
            heads=sizes["num_heads"],
            mean=(0.0,) * images.shape[1],  # the item's images are normalised already
            std=(1.0,) * images.shape[1],
        ),
        decoder=DecoderConfig(
            width=sizes["decoder_embed_dim"], depth=sizes["decoder_depth"], heads=sizes["decoder_num_heads"]
        ),
        masker=published("milan", sizes["mask_ratio"]),
    )
    teacher = _Given(item.input("teacher_tokens"), item.input("teacher_attention"), config.encoder.grid)
    model = config.build(1, teacher).double()
    weights = {our_name(name): tensor for name, tensor in item.weights().items()}
    load_exactly(model, weights, item.name)

    ids_restore = order.argsort(dim=1)
    mask = Mask.from_scores(ids_restore.double(), config.masker.num_masked(config.encoder.grid))  # late in the order
    batch = Batch(images, total=len(images))
    draws = replace(model.draw(batch, 0, torch.Generator().manual_seed(0)), mask=mask)
    loss = model(batch, draws)["loss"]
    loss.backward()
    parameters = _official(model)

    latent = model.encoder(images, mask.ids_keep)
    kept = ids_restore.gather(1, mask.ids_keep).argsort(dim=1)
    dumped = ids_restore.gather(1, mask.ids_mask).argsort(dim=1)
    outputs = {
        "latent": torch.cat([latent.prefix, take(latent.patches, kept)], dim=1),
        "mask": mask.masked,
        "ids_restore": ids_restore,
        "ids_keep": mask.ids_keep.gather(1, kept),
        "ids_dump": mask.ids_mask.gather(1, dumped),
        "pred_with_cls": model.decoder(latent, mask, everywhere=True, with_class=True),
        "loss": loss.reshape(1),
        **gradients("grad/", parameters),
    }
    return Computed(
        outputs, numbers={"gradient_l2_norms": norms(parameters)}, config={"layer_norm_eps": norm_eps(model)}
    )


def sampling(item: Item) -> Computed:
    """How often each patch, and each pair, is visible, and each the first, in many draws of our own."""
    deviations: dict[str, float] = {}
    numbers = []
    expected, stored_draws = item.expected(), item.config["draws"]
    for index, (setting, stated) in enumerate(zip(item.config["settings"], item.numbers["settings"], strict=True)):
        importance = item.input(f"importance_{index}")
        generator = torch.Generator().manual_seed(index)
        masker, grid = published("milan", setting["mask_ratio"]), (1, setting["patches"])
        weights = importance.expand(DRAWS, -1)
        visible = (~masker(DRAWS, grid, generator, weights).masked).double()
        first = torch.nn.functional.one_hot(draw_order(weights, 0.0, generator).argmax(dim=1), len(importance))
        ours = {
            f"visible_probability_{index}": (visible.mean(dim=0), stored_draws),
            f"visible_probability_exact_{index}": (visible.mean(dim=0), math.inf),
            f"first_drawn_probability_{index}": (first.double().mean(dim=0), stored_draws),
            f"pair_visible_probability_{index}": (visible.mT @ visible / DRAWS, stored_draws),
        }
        for name, (found, draws) in ours.items():
            target, _ = expected.get(name, (None, None))
            if target is not None:
                deviations[name] = unlikeliness(found, target, draws)
        means = (visible * importance.argsort().argsort()).sum(dim=1) / visible.sum(dim=1)  # rank of the visible ones
        error = abs(means.mean().item() - stated["mean_importance_rank_of_visible"])
        standard_error = means.std().item() * math.sqrt(1 / DRAWS + 1 / stored_draws)
        deviations[f"numbers/settings/{index}/mean_importance_rank_of_visible"] = error / (SIGMAS * standard_error)
        found_here = {"visible": int(visible[0].sum()), "mean_importance_rank_of_visible": means.mean().item()}
        numbers.append({**stated, **found_here})
    return Computed({}, numbers={"settings": numbers}, deviations=deviations)


def attmask(item: Item) -> Computed:
    """High and low masks, exactly; how often hints mask each patch; all counts."""
    attention, generator = item.input("attention"), torch.Generator().manual_seed(0)
    grid = (1, attention.shape[1])
    outputs: dict[str, Tensor] = {}
    settings = []
    for ratio in item.config["ratios"]:
        for name, masker in (("high", published("attmask_high", ratio)), ("low", published("attmask_low", ratio))):
            outputs[f"attmask_{name}_{ratio}"] = masker(len(attention), grid, generator, attention).masked
        settings.append({"ratio": ratio, "masked": masker.num_masked(grid)})
    stated, hinting = item.numbers["hint"], _hint(item.config["hint"])
    top, shown, among = hinting.counts(grid)
    masked = torch.stack([hinting(DRAWS, grid, generator, row.expand(DRAWS, -1)).masked for row in attention])
    target, _ = item.expected()["hint_mask_probability"]
    assert target is not None
    right_count = int(masked[0, 0].sum()) == stated["masked_top"] - stated["revealed"]
    counts = {"masked_top": top, "candidate_top": among, "revealed": shown}
    return Computed(
        outputs,
        numbers={"settings": settings, "hint": {**stated, **counts}},
        deviations={
            "hint_mask_probability": unlikeliness(masked.double().mean(dim=1), target, stated["draws"]),
            "hint/masked": 0.0 if right_count else math.inf,
        },
    )


class _Given(Teacher):
    """Answers what an item states of its teacher, the class token first."""

    name, queries, num_prefix = "the item's teacher", ("class",), 1

    def __init__(self, tokens: Tensor, attention: Tensor, grid: tuple[int, int]) -> None:
        super().__init__()
        self.tokens, self.attention, self.grid, self.width = tokens, attention, grid, tokens.shape[2]
        self._freeze()

    def forward(self, images: Tensor, query: Query | None = None) -> Guidance:
        """The stored tokens, and the class token's row of the stored attention."""
        return Guidance(self.tokens[:, :1], self.tokens[:, 1:], self.attention[:, 0, 1:] if query else None)


def unlikeliness(ours: Tensor, target: Tensor, draws: float) -> float:
    """The worst difference of two sets of shares, ours of `DRAWS`, as a multiple of what chance explains."""
    if ours.shape != target.shape:
        return math.inf
    standard_error = (target * (1 - target) * (1 / DRAWS + 1 / draws)).sqrt()
    gap, certain = (ours - target).abs(), standard_error == 0
    if gap[certain].any():
        return math.inf
    return (gap[~certain] / (SIGMAS * standard_error[~certain])).max().item()


def _hint(config: dict[str, float]) -> AttentionMasker:
    """The preset with the shares of the item."""
    return replace(
        published("attmask_hint", config["ratio"]), hint_show=config["show_ratio"], hint_among=config["show_max"]
    )


def _official(model: nn.Module) -> dict[str, nn.Parameter]:
    return {official_name(name): parameter for name, parameter in model.named_parameters()}

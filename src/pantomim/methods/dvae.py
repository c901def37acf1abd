"""Discrete variational auto-encoder: images to codes and back, to have ids that a masked model can predict.

    loss = mean over values of -ln p(pixel | codes)  +  beta * cells / values * mean over cells of KL(q || uniform)

q is the encoder's distribution over the codes of a cell; the decoder sees codes relaxed by Gumbel noise at a
temperature. Temperature and beta are annealed.

Paper: Ramesh et al. 2021, *Zero-Shot Text-to-Image Generation*, arXiv:2102.12092, section 2.1 and appendix A.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pantomim.core.batch import Batch
from pantomim.core.frozen import frozen
from pantomim.core.precision import at_least_float32
from pantomim.core.ranges import AtLeastOne, NotNegative, ShareBelowOne
from pantomim.core.schedule import half_cosine
from pantomim.methods.base import Method, Requirements
from pantomim.nn.dvae import DVAENetworks, DVAESizes, code_grid, map_pixels, unmap_pixels
from pantomim.nn.momentum import EMA, Momentum


@frozen
class Annealing:
    """Half a cosine from `start` in step 0 to `end` in step `steps`, where it stays."""

    start: NotNegative
    end: NotNegative
    steps: AtLeastOne

    def at(self, step: int) -> float:
        """The value in a step."""
        return half_cosine(self.start, self.end, min(step / self.steps, 1.0))


@frozen
class DVAEConfig:
    """Sizes of the networks, and how relaxation and regularisation change while they are trained.

    Paper: appendix A.2: 1 to 1/16 over 150,000 steps, 0 to 6.6 over 5,000, 0.999.
    """

    kind: Literal["dvae"] = "dvae"
    sizes: DVAESizes = field(default_factory=DVAESizes)  # Of encoder and decoder
    # Height and width of the training images; ids can be had of any other size
    image_size: tuple[int, int] = (256, 256)
    # Of the relaxation of codes
    temperature: Annealing = field(default_factory=lambda: Annealing(1.0, 1 / 16, 150_000))
    # Of the distance from the uniform use of all codes, in the paper's unit (beta)
    kl_weight: Annealing = field(default_factory=lambda: Annealing(0.0, 6.6, 5_000))
    momentum: ShareBelowOne = 0.999  # What the EMA of the weights, which is exported, keeps of itself at each step

    def __post_init__(self) -> None:
        code_grid(self.image_size, self.sizes.stride)
        if not self.temperature.start or not self.temperature.end:
            raise ValueError(
                f"DVAEConfig.temperature must stay above 0; got {self.temperature.start} to {self.temperature.end}."
            )

    def annealed_over(self, total: int) -> "DVAEConfig":
        """The same for a run of `total` steps: temperature over the first half, KL weight over the first twentieth.

        Deviation: the paper has a twentieth and a six-hundredth of 3,000,000; short runs need more, and this is ours.
        """
        temperature = replace(self.temperature, steps=max(total // 2, 1))
        return replace(self, temperature=temperature, kl_weight=replace(self.kl_weight, steps=max(total // 20, 1)))

    def build(self, steps: int | None = None) -> "DVAE":
        """The method, initialised from torch's global generator as the authors' is."""
        return DVAE(self)


@dataclass(frozen=True)
class DVAEDraws:
    """All that is random or changes with the step."""

    noise: Float[Tensor, "B K h w"]  # standard Gumbel noise for every code of every cell
    temperature: Float[Tensor, ""]
    kl_weight: Float[Tensor, ""]  # the paper's beta


class DVAE(Method):
    """Encoder, relaxed codes, decoder; a uniform prior over the codes (section 2.1)."""

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        self.networks, self.sizes = DVAENetworks(config.sizes), config.sizes
        self.average = EMA(self.networks, "networks", Momentum(config.momentum))
        self.temperature, self.kl_weight = config.temperature, config.kl_weight
        self.requirements = Requirements(
            self.sizes.in_chans, config.image_size, self.sizes.stride, "method.sizes.in_chans", "method.sizes.stride"
        )

    def draw(self, batch: Batch, step: int, generator: torch.Generator) -> DVAEDraws:
        """Gumbel noise, and where the two schedules stand."""
        images = batch.images
        grid = code_grid((images.shape[2], images.shape[3]), self.sizes.stride)
        dtype = torch.promote_types(images.dtype, torch.float32)
        noise = torch.empty(len(batch), self.sizes.vocabulary, *grid, dtype=dtype, device=images.device)
        # A seed for each image of the global batch, so that only this batch's rows need to be drawn.
        seeds = torch.randint(2**62, (batch.total,), generator=generator, device=generator.device)
        one = torch.Generator(images.device)
        for row, seed in zip(noise, seeds[batch.start : batch.start + len(batch)].tolist(), strict=True):
            row.exponential_(generator=one.manual_seed(seed))
        noise = noise.clamp_min_(torch.finfo(dtype).tiny).log_().neg_()
        return DVAEDraws(noise, *(noise.new_tensor(each.at(step)) for each in (self.temperature, self.kl_weight)))

    def forward(self, batch: Batch, draws: DVAEDraws) -> dict[str, Tensor]:
        """The negative evidence lower bound per pixel value (appendix A.2, A.3); below 0 is normal for a density."""
        mapped = map_pixels(batch.images)  # (B, C, H, W) in [0.1, 0.9]
        logits = at_least_float32(self.networks.encoder(mapped))  # (B, K, h, w)
        codes = ((logits + draws.noise) / draws.temperature).softmax(dim=1)  # relaxed, not rounded
        prediction = at_least_float32(self.networks.decoder(codes))  # (B, 2 C, H, W)
        nll = logit_laplace_nll(prediction, mapped).mean()
        kl = kl_from_uniform(logits).mean()
        cells = logits[:, :1].numel() / mapped.numel()  # positions per pixel value: 1/192 at stride 8
        decoded = unmap_pixels(prediction[:, : mapped.shape[1]].detach().sigmoid())
        return {
            "loss": nll + draws.kl_weight * cells * kl,
            "nll": nll,
            "kl": kl,
            "mse": F.mse_loss(decoded, batch.images),
            "perplexity": perplexity(logits.argmax(dim=1).flatten(1), self.sizes.vocabulary),
            "temperature": draws.temperature,
            "kl_weight": draws.kl_weight,
        }

    def exports(self) -> dict[str, Any]:
        """The averaged networks."""
        return {"tokenizer": self.average.copy}


def logit_laplace_nll(
    prediction: Float[Tensor, "B S H W"], mapped: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B C H W"]:
    """The negative log-density of mapped pixels under locations (first half of the channels) and log-scales.

    Paper: appendix A.3: ln(2 b) + ln y + ln(1 - y) + |logit y - mu| / b.
    Deviation: log-scales are cut to [-7, 7], so that no step overflows.
    """
    location, log_scale = prediction.chunk(2, dim=1)
    log_scale, distance = log_scale.clamp(-7, 7), (mapped.logit() - location).abs()
    return math.log(2) + log_scale + mapped.log() + torch.log1p(-mapped) + distance * (-log_scale).exp()


def kl_from_uniform(logits: Float[Tensor, "B K h w"]) -> Float[Tensor, "B h w"]:
    """The divergence of each cell's distribution of codes, not relaxed, from the uniform one; 0 to ln K."""
    log_shares = logits.log_softmax(dim=1)
    return (log_shares.exp() * (log_shares + math.log(logits.shape[1]))).sum(dim=1)


def perplexity(ids: Int[Tensor, "B N"], vocabulary: int) -> Float[Tensor, ""]:
    """How many codes a batch uses, weighted: the exponential of the entropy of their shares."""
    ones = torch.ones(ids.numel(), device=ids.device)
    shares = torch.zeros(vocabulary, device=ids.device).scatter_add(0, ids.flatten(), ones) / ids.numel()
    return torch.special.entr(shares).sum().exp()

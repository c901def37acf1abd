"""MAE as transformers and lightly have it, with our weights: what `step.py` times and the parity tests compare with."""

from functools import partial
from typing import Any

import torch
from lightly.models import utils
from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from pantomim.masking.mask import Mask
from pantomim.methods.mae import MAE, MAEConfig
from pantomim.nn.vit import NORM_EPS


def transformers_mae(ours: MAE, config: MAEConfig) -> ViTMAEForPreTraining:
    """Transformers' MAE of the same sizes, holding our weights. It draws its masks itself, or takes `noise`."""
    encoder, decoder = config.encoder, config.decoder
    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=encoder.width,
            num_hidden_layers=encoder.depth,
            num_attention_heads=encoder.heads,
            intermediate_size=int(encoder.width * encoder.mlp_ratio),
            layer_norm_eps=NORM_EPS,
            image_size=encoder.image_size[0],
            patch_size=encoder.patch_size,
            num_channels=encoder.in_chans,
            decoder_hidden_size=decoder.width,
            decoder_num_hidden_layers=decoder.depth,
            decoder_num_attention_heads=decoder.heads,
            decoder_intermediate_size=int(decoder.width * decoder.mlp_ratio),
            mask_ratio=config.masker.ratio,
            norm_pix_loss=config.target.normalize,
            attn_implementation="sdpa",
        )
    )
    model.load_state_dict(_transformers_names(ours))
    return model


def _transformers_names(ours: MAE) -> dict[str, Tensor]:
    weights = ours.encoder.state_dict()
    named = {
        "vit.embeddings.cls_token": weights["cls_token"],
        "vit.embeddings.position_embeddings": weights["pos_embed"],
    }
    for kind in ("weight", "bias"):
        named[f"vit.embeddings.patch_embeddings.projection.{kind}"] = weights[f"patch_embed.proj.{kind}"]
        named[f"vit.layernorm.{kind}"] = weights[f"norm.{kind}"]
    named |= _transformers_blocks(weights, "blocks", "vit.layers", len(ours.encoder.blocks))

    weights = ours.decoder.state_dict()
    for name in ("mask_token", "decoder_pos_embed"):
        named[f"decoder.{name}"] = weights[name]
    for name in ("decoder_embed", "decoder_norm", "decoder_pred"):
        for kind in ("weight", "bias"):
            named[f"decoder.{name}.{kind}"] = weights[f"{name}.{kind}"]
    return named | _transformers_blocks(
        weights, "decoder_blocks", "decoder.decoder_layers", len(ours.decoder.decoder_blocks)
    )


def _transformers_blocks(weights: dict[str, Tensor], ours: str, theirs: str, depth: int) -> dict[str, Tensor]:
    parts = {
        "norm1": "layernorm_before",
        "attn.proj": "attention.o_proj",
        "norm2": "layernorm_after",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    named = {}
    for block in range(depth):
        for kind in ("weight", "bias"):
            for our_part, their_part in parts.items():
                named[f"{theirs}.{block}.{their_part}.{kind}"] = weights[f"{ours}.{block}.{our_part}.{kind}"]
            qkv = weights[f"{ours}.{block}.attn.qkv.{kind}"].chunk(3)
            for part, value in zip(("q", "k", "v"), qkv, strict=True):
                named[f"{theirs}.{block}.attention.{part}_proj.{kind}"] = value
    return named


class LightlyMAE(nn.Module):
    """MAE put together from lightly's parts as its documentation does, with normalised targets."""

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        encoder, decoder = config.encoder, config.decoder
        norm_layer: Any = partial(nn.LayerNorm, eps=NORM_EPS)
        vit = VisionTransformer(
            img_size=encoder.image_size,
            patch_size=encoder.patch_size,
            in_chans=encoder.in_chans,
            num_classes=0,
            global_pool="token",
            embed_dim=encoder.width,
            depth=encoder.depth,
            num_heads=encoder.heads,
            mlp_ratio=encoder.mlp_ratio,
            norm_layer=norm_layer,
        )
        self.ratio, self.patch_size, self.normalize = config.masker.ratio, encoder.patch_size, config.target.normalize
        self.backbone = MaskedVisionTransformerTIMM(vit)
        self.backbone.mask_token.requires_grad_(False)  # MAE has no mask token in the encoder
        self.decoder_embed = nn.Linear(encoder.width, decoder.width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=vit.patch_embed.num_patches,
            embed_dim=decoder.width,
            depth=decoder.depth,
            num_heads=decoder.heads,
            mlp_ratio=decoder.mlp_ratio,
        )
        self.decoder_pred = nn.Linear(decoder.width, encoder.patch_size**2 * encoder.in_chans)

    def draw(self, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Ids to keep (the class token is id 0) and to hide."""
        size = (batch_size, self.backbone.sequence_length)
        return utils.random_token_mask(size=size, mask_ratio=self.ratio, device=device)

    def forward(self, images: Tensor, ids_keep: Tensor, ids_mask: Tensor) -> Tensor:
        """Mean squared error on hidden patches."""
        latent = self.decoder_embed(self.backbone.encode(images=images, idx_keep=ids_keep))
        size = (len(images), self.decoder.sequence_length)
        tokens = utils.repeat_token(self.decoder.mask_token, size)
        tokens = utils.set_at_index(tokens, ids_keep, latent.type_as(tokens))
        prediction = self.decoder_pred(utils.get_at_index(self.decoder(tokens), ids_mask))
        target = utils.get_at_index(utils.patchify(images, self.patch_size), ids_mask - 1)
        if self.normalize:
            target = utils.normalize_mean_var(target)
        return nn.functional.mse_loss(prediction, target)


def lightly_mae(ours: MAE, config: MAEConfig) -> LightlyMAE:
    """Lightly's MAE of the same sizes, holding our weights."""
    model = LightlyMAE(config)
    own = {"mask_token": model.backbone.mask_token}  # unused, has no counterpart
    encoder = {f"vit.{name}": value for name, value in ours.encoder.state_dict().items()}
    model.backbone.load_state_dict(encoder | own)
    weights = ours.decoder.state_dict()
    outside = ("decoder_embed.", "decoder_pred.")
    inside = {name.removeprefix("decoder_"): v for name, v in weights.items() if not name.startswith(outside)}
    model.decoder.load_state_dict(inside)
    for name, layer in (("decoder_embed", model.decoder_embed), ("decoder_pred", model.decoder_pred)):
        layer.load_state_dict({kind: weights[f"{name}.{kind}"] for kind in ("weight", "bias")})
    return model


def lightly_ids(mask: Mask) -> tuple[Tensor, Tensor]:
    """Our mask as lightly's ids, which count the class token."""
    return torch.cat([torch.zeros_like(mask.ids_keep[:, :1]), mask.ids_keep + 1], dim=1), mask.ids_mask + 1

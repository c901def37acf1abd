"""MAE as transformers and lightly have it, with our weights: what `step.py` times and the parity tests compare with.

Lightly is imported where it is used, so that `gpu.py` does without it.
"""

from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from pantomim.core.mask import Mask
from pantomim.methods.mae import MAE, MAEConfig
from pantomim.nn.blocks import NORM_EPS


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
            norm_pix_loss=config.target.normalise == "patch",
            attn_implementation="sdpa",
        )
    )
    model.load_state_dict(transformers_names(ours.state_dict(), config))
    return model


def transformers_names(weights: dict[str, Tensor], config: MAEConfig) -> dict[str, Tensor]:
    """Our weights, or gradients, as transformers names and cuts them."""
    parts = {
        "encoder.cls_token": "vit.embeddings.cls_token",
        "encoder.pos_embed": "vit.embeddings.position_embeddings",
        "encoder.patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "encoder.norm": "vit.layernorm",
        "decoder": "decoder",
    }
    for block in range(config.encoder.depth):
        parts |= _transformers_block(f"encoder.blocks.{block}", f"vit.layers.{block}")
    for block in range(config.decoder.depth):
        parts |= _transformers_block(f"decoder.decoder_blocks.{block}", f"decoder.decoder_layers.{block}")
    named = {}
    for name, value in weights.items():
        part = next(part for part in sorted(parts, key=len, reverse=True) if f"{name}.".startswith(f"{part}."))
        rest = name.removeprefix(part)
        if part.endswith("attn.qkv"):
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                named[f"{parts[part]}.{letter}_proj{rest}"] = third
        else:
            named[parts[part] + rest] = value
    return named


def _transformers_block(ours: str, theirs: str) -> dict[str, str]:
    parts = {
        "norm1": "layernorm_before",
        "attn.qkv": "attention",
        "attn.proj": "attention.o_proj",
        "norm2": "layernorm_after",
        "mlp": "mlp",
    }
    return {f"{ours}.{part}": f"{theirs}.{name}" for part, name in parts.items()}


class LightlyMAE(nn.Module):
    """MAE put together from lightly's parts as its documentation does, with normalised targets."""

    def __init__(self, config: MAEConfig) -> None:
        from lightly.models import utils
        from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM

        super().__init__()
        self.utils: Any = utils
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
        self.ratio, self.patch_size = config.masker.ratio, encoder.patch_size
        self.normalize = config.target.normalise == "patch"
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
        return self.utils.random_token_mask(size=size, mask_ratio=self.ratio, device=device)

    def forward(self, images: Tensor, ids_keep: Tensor, ids_mask: Tensor) -> Tensor:
        """Mean squared error on hidden patches."""
        latent = self.decoder_embed(self.backbone.encode(images=images, idx_keep=ids_keep))
        size = (len(images), self.decoder.sequence_length)
        tokens = self.utils.repeat_token(self.decoder.mask_token, size)
        tokens = self.utils.set_at_index(tokens, ids_keep, latent.type_as(tokens))
        prediction = self.decoder_pred(self.utils.get_at_index(self.decoder(tokens), ids_mask))
        target = self.utils.get_at_index(self.utils.patchify(images, self.patch_size), ids_mask - 1)
        if self.normalize:
            target = self.utils.normalize_mean_var(target)
        return nn.functional.mse_loss(prediction, target)


def lightly_mae(ours: MAE, config: MAEConfig) -> LightlyMAE:
    """Lightly's MAE of the same sizes, holding our weights."""
    model = LightlyMAE(config)
    unused = {"backbone.mask_token": model.backbone.mask_token}
    model.load_state_dict(lightly_names(ours.state_dict()) | unused)
    return model


def lightly_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights, or gradients, as lightly names them."""
    named = {}
    for name, value in weights.items():
        part, rest = name.split(".", 1)
        if part == "encoder":
            named[f"backbone.vit.{rest}"] = value
        elif rest.startswith(("decoder_embed.", "decoder_pred.")):
            named[rest] = value
        else:
            named[f"decoder.{rest.removeprefix('decoder_')}"] = value
    return named


def lightly_ids(mask: Mask) -> tuple[Tensor, Tensor]:
    """Our mask as lightly's ids, which count the class token."""
    return torch.cat([torch.zeros_like(mask.ids_keep[:, :1]), mask.ids_keep + 1], dim=1), mask.ids_mask + 1

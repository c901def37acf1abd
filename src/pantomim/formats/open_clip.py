"""Image towers of the open_clip library: `open_clip:NAME:TAG` downloads weights, `open_clip:NAME@FILE` reads them.

A plain tower is the network of `formats.clip`; a tower that open_clip takes from timm is wrapped as a model of timm.
"""

from functools import partial
from typing import Any

from pantomim.formats.clip import Activation, clip_encoder, image_tower
from pantomim.formats.files import load_exactly
from pantomim.formats.reader import read_weights
from pantomim.formats.timm import KERNELS, TimmEncoder, unknown_name
from pantomim.formats.wrapped import missing_extra


def load_open_clip(spec: str) -> TimmEncoder:
    """An image tower, NAME:TAG or NAME@FILE (of tower or model); `ConnectionError`: its weights cannot be had."""
    try:
        import open_clip  # takes seconds, so only where it is needed
    except ImportError as error:
        raise missing_extra(f"open_clip:{spec}", "open_clip") from error
    source, (name, _, file) = f"open_clip:{spec}", spec.partition("@")
    architecture, _, tag = name.partition(":")
    if architecture not in open_clip.list_models():
        raise unknown_name("open_clip", architecture, open_clip.list_models())
    if not file and tag not in (tags := open_clip.list_pretrained_tags_by_model(architecture)):
        raise ValueError(
            f"open_clip:NAME:TAG must name pretrained weights; got {tag or 'no tag'} of {architecture}. "
            f"{'Tags: ' + ', '.join(tags) if tags else 'It has none'}; or give a file: open_clip:{architecture}@FILE."
        )
    try:
        model: Any = open_clip.create_model(architecture, pretrained=None if file else tag, pretrained_text=False)
    except (OSError, RuntimeError) as error:
        raise ConnectionError(
            f"{source} must be in the cache or to be downloaded; got {type(error).__name__}: {error}. Connect to the "
            f"network once, set HF_HOME to a cache that has it, or give a file: open_clip:{architecture}@FILE."
        ) from error
    tower = model.visual
    if file:
        weights = {key.removeprefix("module."): value.float() for key, value in read_weights(file).items()}
        load_exactly(tower, image_tower(weights), source)
    settings = open_clip.get_model_preprocess_cfg(model)
    mean, std = (tuple(map(float, settings[key])) for key in ("mean", "std"))
    if isinstance(tower, open_clip.model.TimmModel):
        trunk: Any = tower.trunk
        size: Any = getattr(getattr(trunk, "patch_embed", None), "img_size", None) or settings["size"]
        image_size = (size, size) if isinstance(size, int) else tuple(size)
        bare = partial(open_clip.create_model, architecture, pretrained=None, pretrained_text=False)
        encoder = TimmEncoder(trunk, source, image_size, mean, std, lambda: bare().visual.trunk).eval()
    else:
        encoder = clip_encoder(
            tower.state_dict(),
            source,
            activation=_activation(tower, source),
            heads=tower.transformer.resblocks[0].attn.num_heads,
            norm_eps=tower.ln_post.eps,
            mean=mean,
            std=std,
        )
    encoder.interpolation = settings["interpolation"] if settings["interpolation"] in KERNELS else None
    return encoder


def _activation(tower: Any, source: str) -> Activation:
    """The activation of a tower that is the plain network; every other tower is refused."""
    import open_clip
    from torch import nn

    plain = type(tower) is open_clip.transformer.VisionTransformer and tower.attn_pool is None
    blocks = tower.transformer.resblocks if plain else []
    usual = open_clip.transformer.ResidualAttentionBlock
    activations = {type(block.mlp.gelu) if type(block) is usual else None for block in blocks}
    if len(activations) == 1 and len(tower.ln_pre.state_dict()) == 2:
        (activation,) = activations
        if activation is nn.GELU:
            return "gelu"
        if activation is open_clip.transformer.QuickGELU:
            return "quick_gelu"
    raise ValueError(
        f"{source} must have a plain vision transformer or a network of timm as image tower; got "
        f"{type(tower).__name__} with other parts. Choose a ViT such as ViT-B-16."
    )

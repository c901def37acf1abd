"""Vision transformers of transformers, run as they are: `hf:NAME` downloads, `hf:FOLDER` reads a saved one."""

import copy
import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pantomim.core.foreign import reason
from pantomim.formats.trainable import Untold, as_trainable, renamed
from pantomim.formats.wrapped import LastBlocks, Query, WrappedEncoder, missing_extra, one_size
from pantomim.nn.rope import Rope
from pantomim.nn.tokens import AnyImages
from pantomim.nn.vit import Encoder, Interpolation, Resampling

BLOCKS = ("layers", "layer", "encoder.layers", "encoder.layer", "model.layers", "model.layer")  # names of the blocks
NORMS = ("layernorm", "post_layernorm", "norm")  # and of the final norm
PREPROCESSING = "preprocessor_config.json"
RESAMPLE: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
# The library's names and ours, for `renamed`; what stands behind the blocks, but for the norm, is left out.
TRAINABLE = (
    (r"^(pooler|head|decoder)\..*|^embeddings\.mask_token$|.*position_ids$|.*relative_position_index$", ""),
    (r"^embeddings\.(cls_token|class_embedding)$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings?(\.weight)?$", "pos_embed"),
    (r"^embeddings\.patch_embeddings?\.(projection\.)?", "patch_embed.proj."),
    (r"^shared_position_bias\.", "rel_pos_bias."),
    (r"^(encoder\.|model\.)?layers?\.", "blocks."),
    (r"\.(layernorm_before|layer_norm1)\.", ".norm1."),
    (r"\.(layernorm_after|layer_norm2)\.", ".norm2."),
    (r"\.(attention|self_attn)\.(o|out)_proj\.", ".attn.proj."),
    (r"\.(attention|self_attn|relative_position_bias)\.", ".attn."),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
    (r"\.mlp\.up_proj\.", ".mlp.fc1."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    (r"\.(layer_scale|lambda_)([12])(\.lambda1)?$", r".gamma_\2"),
    (r"^(layernorm|post_layernorm)\.", "norm."),
    (r"^pre_layrnorm\.", "norm_pre."),
)


class HFEncoder(WrappedEncoder):
    """A vision transformer of transformers behind an encoder's interface."""

    def __init__(
        self,
        model: Any,
        source: str,
        image_size: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        projection: Tensor | None = None,
    ) -> None:
        super().__init__(model, source, image_size, mean, std, projection)
        modules, size = dict(model.named_modules()), getattr(model.config, "patch_size", None)
        blocks, norm = (next((name for name in names if name in modules), None) for names in (BLOCKS, NORMS))
        if blocks is None or norm is None or not isinstance(size, int):
            raise _no_transformer(source, model)
        self.blocks_name, self.norm_name = blocks, norm
        if any(side % size for side in image_size):
            raise one_size(source, image_size, image_size)
        self.grid = (image_size[0] // size, image_size[1] // size)
        self.shuffles = model.config.model_type == "vit_mae"
        if self.shuffles:
            model.config.mask_ratio = 0.0  # every patch is seen
        model.config.tie_last_hidden_states = False  # of the last block its output, not the final norm's
        resamples = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if resamples else {}
        self.num_blocks = len(model.get_submodule(blocks))
        # Fused kernels compute no attention weights: the last block does without, all others keep theirs
        eager = copy.deepcopy(model.config)
        eager._attn_implementation = "eager"
        for part in model.get_submodule(blocks)[-1].modules():
            if hasattr(part, "config"):
                part.config = eager
        with torch.no_grad():
            output = self._run(self._blank(), 1, attention=True)
        if output.hidden_states is None:
            raise _no_transformer(source, model)
        tokens, weights = output.hidden_states[-1], _attention(output)
        self.has_attention = weights is not None and weights.dim() == 4
        self.width, self.num_prefix = tokens.shape[2], tokens.shape[1] - self.grid[0] * self.grid[1]
        if self.num_prefix < 0:
            raise one_size(source, image_size, image_size)
        self.has_class_token = self.num_prefix > int(getattr(model.config, "num_register_tokens", 0) or 0)

    def _run(self, images: Tensor, count: int, attention: bool) -> Any:
        """The library's output, with the hidden states of the last `count` blocks."""
        given: dict[str, Any] = {"pixel_values": images, **self.options}
        if self.shuffles:  # by the order of this noise: it leaves patches where they are
            given["noise"] = torch.arange(self.grid[0] * self.grid[1], device=images.device).expand(len(images), -1)
        # number 0 is the first block's input; older versions take the numbers for True, and give all
        numbers = list(range(self.num_blocks + 1 - count, self.num_blocks + 1))
        return self.model(**given, output_hidden_states=numbers, output_attentions=attention)

    def last_blocks(self, images: AnyImages, count: int = 1, query: Query | None = None) -> LastBlocks:
        output = self._run(self.standardised(images), count, attention=query is not None)
        tokens, weights = list(output.hidden_states[-count:]), _attention(output)
        if query is None or weights is None:
            return LastBlocks(tokens)
        return LastBlocks(tokens, self._to_patches(weights[:, :, self._rows(query)]))

    def norm(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.model.get_submodule(self.norm_name)(tokens)

    def trainable(self) -> Encoder:
        about, weights = self.model.config, our_names(self.model, self.model.state_dict())
        rope = Rope(about.rope_theta) if hasattr(about, "rope_theta") else None
        how: Resampling = "timm" if about.model_type == "dinov2_with_registers" else "authors"
        heads = getattr(about, "num_attention_heads", 1)
        untold = Untold(self.image_size, heads, rope, how, *self.statistics, self.interpolation)
        for name in ("layerscale_value", "layer_scale_init_value"):
            if (scale := getattr(about, name, None)) is not None and scale > 0:
                untold = replace(untold, layer_scale=float(scale))
        return as_trainable(self, self.model, weights, untold)

    def _resize(self, image_size: tuple[int, int]) -> "HFEncoder":
        model = copy.deepcopy(self.model)  # which resamples its positions as it runs
        return HFEncoder(model, self.source, image_size, *self.statistics, projection=self.projection)

    def untrained(self) -> "HFEncoder":
        model = type(self.model)(copy.deepcopy(self.model.config))
        return HFEncoder(model, self.source, self.image_size, *self.statistics)


def our_names(model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of transformers' network by our names."""
    found = renamed(weights, TRAINABLE)
    if (token := found.get("cls_token")) is not None:
        found["cls_token"] = token.view(1, 1, -1)
    if (table := found.get("pos_embed")) is not None:
        found["pos_embed"] = table.view(1, *table.shape[-2:])
    if not found.get("reg_token", torch.empty(0)).numel():
        found.pop("reg_token", None)
    return found


def load_hf(name: str) -> HFEncoder:
    """A vision transformer of this name or folder, in float32; `ConnectionError`: its weights cannot be had."""
    try:
        import transformers  # takes seconds, so only where it is needed
    except ImportError as error:
        raise missing_extra(f"hf:{name}", "hf") from error
    source, local = f"hf:{name}", Path(name).is_dir()
    if not local and (name.startswith((".", "/", "~")) or name.count("/") > 1):  # no name of a hub
        raise ValueError(f"{source} must be a folder with a model of transformers; got none there. Check the path.")
    messages = transformers.utils.logging
    verbosity, bar = messages.get_verbosity(), messages.is_progress_bar_enabled()
    messages.set_verbosity_error()  # what it would warn of is an error below
    messages.disable_progress_bar()
    safe: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(name, **safe)
        tower = transformers.CLIPVisionModelWithProjection  # where it is alone AutoModel leaves out the projection
        loader: Any = tower if tower.__name__ in (config.architectures or ()) else transformers.AutoModel
        options = {"dtype": torch.float32, "output_loading_info": True, **safe}
        model, report = loader.from_pretrained(name, **options)
    except Exception as error:  # damaged files and foreign code end in errors of many libraries
        offline = isinstance(error, OSError) and not local
        raise (ConnectionError if offline else ValueError)(
            f"{source} must be a folder with a model of transformers, or its name in the cache or on the hub; got "
            f"{type(error).__name__}: {reason(error)}. Write the folder with save_pretrained, of "
            f"the model and of its image processor; or check the name, connect to the network once, or set HF_HOME to "
            f"a cache that has it."
        ) from error
    finally:
        messages.set_verbosity(verbosity)
        if bar:
            messages.enable_progress_bar()
    absent = [key for key in report["missing_keys"] if "pooler" not in key.split(".")]  # nobody asks what pools
    if absent or report["mismatched_keys"]:
        raise ValueError(
            f"{source} must hold the weights of {type(model).__name__}; missing or mis-shaped: "
            f"{', '.join(map(str, [*absent, *report['mismatched_keys']]))}. Check that weights and config fit."
        )
    vision: Any = getattr(model, "vision_model", model)
    projection = getattr(model, "visual_projection", None)
    size = getattr(vision.config, "image_size", None)
    if not isinstance(size, int | list | tuple):
        raise ValueError(f"{source} must state an image_size; got {type(vision).__name__} without. Choose a ViT.")
    image_size = (size, size) if isinstance(size, int) else tuple(size)
    table = None if projection is None else projection.weight.detach().T.contiguous()
    mean, std, interpolation = _preprocessing(name, source)
    messages.set_verbosity_error()  # it would tell that attention cannot be had, which it can: see `HFEncoder`
    encoder = HFEncoder(vision, source, image_size, mean, std, projection=table).eval()
    messages.set_verbosity(verbosity)
    encoder.interpolation = interpolation
    return encoder


def _no_transformer(source: str, model: Any) -> ValueError:
    return ValueError(
        f"{source} must be a vision transformer with patches, blocks and a final norm; got {type(model).__name__}. "
        f"Choose another, such as ViT, DINOv2 or CLIP."
    )


def _preprocessing(name: str, source: str) -> tuple[tuple[float, ...], tuple[float, ...], Interpolation | None]:
    from transformers.utils import cached_file

    path = cached_file(name, PREPROCESSING, _raise_exceptions_for_missing_entries=False)
    try:
        settings = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
        mean, std = (tuple(map(float, settings[key])) for key in ("image_mean", "image_std"))
        return mean, std, RESAMPLE.get(settings.get("resample", 0))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{source} must have a {PREPROCESSING} that states image_mean and image_std; got none. Get the one that "
            f"was published with the weights, or write it beside them: "
            f'{{"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}} for DINO, DINOv2 and DINOv3, '
            f"0.5 in all six places for ViT and SigLIP."
        ) from error


def _attention(output: Any) -> Float[Tensor, "B heads T T"] | None:
    """The attention of the last block, the only one that computes it; None if the network has none."""
    found = [weights for weights in output.attentions or () if weights is not None]
    return found[-1] if found else None

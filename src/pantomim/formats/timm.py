"""Models of the timm library as encoders: plain vision transformers become our `Encoder`, all others are wrapped.

`timm:NAME` downloads the pretrained weights (or finds them in the cache); `timm:NAME@FILE` takes them from a file in a
layout that timm knows, and needs no network. We read that file ourselves: older timm would run a pickle's code.
"""

import copy
import difflib
import inspect
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pantomim.formats.reader import read_weights
from pantomim.formats.trainable import Untold, as_trainable, half_apart, not_trainable, renamed, same_rope
from pantomim.formats.wrapped import LastBlocks, Query, WrappedEncoder
from pantomim.nn.mlp import PLAIN_MLP
from pantomim.nn.resize import resample_stretched
from pantomim.nn.rope import Rope
from pantomim.nn.tokens import AnyImages
from pantomim.nn.vit import Encoder, Interpolation, Norms, Resampling

# timm's names and ours, for `renamed`; what stands behind the blocks, but for the norm, is left out.
TRAINABLE = (
    (r"^(head|fc_norm|attn_pool|head_drop)\..*|.*relative_position_index$", ""),
    (r"\.ls([12])\.gamma$", r".gamma_\1"),
)
# What our encoders have of the plain network; others run as timm's, unless they are trained.
PLAIN = {"position": "learned", "attention_bias": "qkv", "layer_scale": None, "mlp": PLAIN_MLP, "norms": Norms()}
KERNELS = get_args(Interpolation)
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # in timm's order: averaged weights come first


class TimmEncoder(WrappedEncoder):
    """Any timm model, built with `num_classes=0`, behind an encoder's interface.

    Tokens of a transformer become prefix and patches; cells of a feature map become patches, without a prefix. Outputs
    of blocks can be had of transformers, attention of timm's plain one. `fresh` makes the same model with new initial
    weights; `stretch` resamples positions as dBOT's authors resample OpenAI's CLIP, not as timm does.
    """

    def __init__(
        self,
        model: nn.Module,
        source: str,
        image_size: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        fresh: Callable[[], nn.Module],
        *,
        projection: Tensor | None = None,
        stretch: bool = False,
    ) -> None:
        from timm.layers import Attention
        from timm.models.vision_transformer import Block, VisionTransformer

        super().__init__(model, source, image_size, mean, std, projection)
        self.fresh, self.stretch = fresh, stretch
        self.num_prefix = int(getattr(model, "num_prefix_tokens", 0))
        self.has_class_token = self.num_prefix > int(getattr(model, "num_reg_tokens", 0))
        with torch.inference_mode():
            output = self.model.forward_features(self._blank())
        self.width, self.grid = self._shape(output)
        blocks: Any = getattr(model, "blocks", ())
        plain = type(model) is VisionTransformer and len(blocks) > 0
        self.has_attention = plain and type(blocks[-1]) is Block and type(blocks[-1].attn) is Attention
        self.has_blocks = plain or (isinstance(output, Tensor) and output.dim() == 3 and self._norm_is_last())
        self.num_blocks = len(blocks) if self.has_blocks else 1

    @torch.no_grad()
    def _norm_is_last(self) -> bool:
        """Whether a model hands out its blocks, and the last one and `norm` are all that comes before pooling."""
        model = self.model
        if not all(hasattr(model, name) for name in ("forward_intermediates", "blocks", "norm")):
            return False
        if "return_prefix_tokens" not in inspect.signature(model.forward_intermediates).parameters:
            return False
        ramp = torch.linspace(0, 1, self.image_size[1]).to(self._blank())
        images = self.standardised(ramp.expand_as(self._blank()))
        (last,) = self._intermediates(images, 1, len(model.blocks))
        expected, tokens = model.forward_features(images), model.norm(last)
        return tokens.shape == expected.shape and torch.allclose(tokens, expected, rtol=1e-4, atol=1e-4)

    def _shape(self, output: Any) -> tuple[int, tuple[int, int]]:
        """Width of a token, and rows and columns of patches; of a sequence without a known grid, one row."""
        width = int(self.model.num_features)
        shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        self.channels_last = len(shape) == 4 and shape[1] != width
        if len(shape) == 4 and width in (shape[1], shape[3]):
            return width, shape[1:3] if self.channels_last else shape[2:]
        if len(shape) == 3:
            count = shape[1] - self.num_prefix
            rows, cols = getattr(getattr(self.model, "patch_embed", None), "grid_size", None) or (1, count)
            return shape[2], (int(rows), int(cols)) if rows * cols == count else (1, count)
        raise ValueError(
            f"{self.source} must give tokens or one feature map; got {shape or type(output).__name__}. Choose another: "
            f'`timm.list_models("vit_*")` names vision transformers.'
        )

    def last_blocks(self, images: AnyImages, count: int = 1, query: Query | None = None) -> LastBlocks:
        """Outputs of the last `count` blocks; of a network without known blocks, its output before pooling."""
        given = self.standardised(images)
        if not self.has_blocks:
            output = self.model.forward_features(given)
            if output.dim() == 4:
                output = output.flatten(1, 2) if self.channels_last else output.flatten(2).mT
            return LastBlocks([output])
        if query is None:
            return LastBlocks(self._intermediates(given, count, self.num_blocks))
        # timm hands out no attention: its weights are computed again from the tokens that the last block was given
        last, seen = self.model.blocks[-1], []
        hook = last.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        try:
            tokens = self._intermediates(given, count, self.num_blocks)
        finally:
            hook.remove()
        return LastBlocks(tokens, self._to_patches(attention_rows(last, seen[0], self._rows(query))))

    def _intermediates(self, images: Tensor, count: int, num_blocks: int) -> list[Float[Tensor, "B T D"]]:
        """All tokens after each of the last `count` blocks, prefix first."""
        found = self.model.forward_intermediates(
            images,
            indices=list(range(num_blocks - count, num_blocks)),
            return_prefix_tokens=True,
            norm=False,
            output_fmt="NLC",
            intermediates_only=True,
        )
        return [torch.cat(pair[::-1], dim=1) if isinstance(pair, tuple) else pair for pair in found]

    def norm(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """The final norm; none, where a model normalises after pooling, or the output has passed it already."""
        return self.model.norm(tokens) if self.has_blocks else tokens

    def _resize(self, image_size: tuple[int, int]) -> "TimmEncoder":
        model: Any = copy.deepcopy(self.model)
        if hasattr(model, "set_input_size"):
            model.set_input_size(img_size=image_size)
            if self.stretch:
                table = self.model.pos_embed.detach()
                model.pos_embed = nn.Parameter(resample_stretched(table, self.grid, model.patch_embed.grid_size, 1))
        return self._with(model, image_size, self.projection)

    def untrained(self) -> "TimmEncoder":
        return self._with(self.fresh(), self.image_size)

    def trainable(self) -> Encoder:
        model = self.model
        theirs, rope = getattr(model, "rope", None), None
        if theirs is not None and (rope := _rope(theirs, self.grid)) is None:
            raise not_trainable(self.source, model, f"it has rotary positions of another kind, {theirs}")
        how: Resampling = "stretched" if self.stretch else "timm"
        untold = Untold(self.image_size, _heads(model), rope, how, *self.statistics, self.interpolation)
        return as_trainable(self, model, our_names(model, model.state_dict()), untold)

    def _with(self, model: nn.Module, image_size: tuple[int, int], projection: Tensor | None = None) -> "TimmEncoder":
        return TimmEncoder(
            model, self.source, image_size, *self.statistics, self.fresh, projection=projection, stretch=self.stretch
        )


def our_names(model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of timm's network by our names, rotated channels in our order."""
    found, rope = renamed(weights, TRAINABLE), getattr(model, "rope", None)
    return found if rope is None or rope.rotate_half else half_apart(found, _heads(model))


def _heads(model: Any) -> int:
    return getattr(getattr(next(iter(getattr(model, "blocks", ())), None), "attn", None), "num_heads", 1)


def _rope(theirs: Any, grid: tuple[int, int]) -> Rope | None:
    """Our rotary positions that are the same as timm's; None if there are none."""
    from timm.layers import RotaryEmbeddingCat, RotaryEmbeddingDinoV3

    if type(theirs) not in (RotaryEmbeddingCat, RotaryEmbeddingDinoV3) or theirs.temperature is None:
        return None
    reference = getattr(theirs, "ref_feat_shape", None)
    kind: Any = "patches" if type(theirs) is RotaryEmbeddingCat else "centred"
    rope = Rope(theirs.temperature, kind, reference and tuple(reference))
    sines, cosines = theirs.get_embed(list(grid)).chunk(2, dim=-1)
    if not theirs.rotate_half:
        sines, cosines = sines[:, ::2].repeat(1, 2), cosines[:, ::2].repeat(1, 2)
    return rope if same_rope(rope, sines, cosines, grid) else None


def attention_rows(block: Any, tokens: Float[Tensor, "B T D"], rows: slice) -> Float[Tensor, "B heads Q T"]:
    """The softmaxed attention of some tokens in a block of timm's plain transformer; `tokens` are its input."""
    attn, normed = block.attn, block.norm1(tokens)
    queries, keys, _ = attn.qkv(normed).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    queries, keys = attn.q_norm(queries[:, :, rows]), attn.k_norm(keys)
    return (queries * attn.scale @ keys.mT).softmax(dim=-1)


def load_timm(spec: str, *, pretrained: bool = True) -> Encoder | TimmEncoder:
    """A timm model, NAME or NAME@FILE (in a layout that timm reads), in evaluation mode; or with initial weights.

    `ConnectionError`: without a file, the weights are neither in timm's cache nor to be downloaded.
    """
    import timm  # takes seconds, so only where it is needed

    name, _, file = spec.partition("@")
    if not timm.is_model(name):
        raise unknown_name("timm", name, timm.list_models())
    overlay = _from_file(name, file) if file else None
    try:  # built with the classes of its weights, because timm reads strictly only then
        model: Any = timm.create_model(name, pretrained=pretrained, pretrained_cfg_overlay=overlay)
    except (OSError, RuntimeError, KeyError, ValueError, zipfile.BadZipFile) as error:
        if file:
            raise ValueError(
                f"timm:{spec} must be weights that timm reads for {name}; got {type(error).__name__}: {error}. "
                f"Check the path and the name of the model."
            ) from error
        if not pretrained or isinstance(error, ValueError):
            raise
        raise ConnectionError(
            f"timm:{name} must be in timm's cache or to be downloaded; got {type(error).__name__}: {error}. "
            f"Connect to the network once, set HF_HOME to a cache that has it, or give a file: timm:{name}@FILE."
        ) from error
    model.pretrained_cfg.pop("state_dict", None)  # the file's weights, which the model now holds itself
    model.reset_classifier(0)
    return as_encoder(model, f"timm:{spec}")


def as_encoder(model: Any, named: str) -> Encoder | TimmEncoder:
    """Our `Encoder` of timm's plain network, as far as that is the same; else the model wrapped; evaluation mode."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    about, is_vit = model.pretrained_cfg, type(model) is VisionTransformer
    mean, std, resized = tuple(about["mean"]), tuple(about["std"]), about.get("interpolation")
    image_size = tuple(model.patch_embed.img_size if is_vit else about["input_size"][1:])
    name = named.removeprefix("timm:").partition("@")[0]
    fresh = partial(timm.create_model, name, pretrained=False, num_classes=0)
    wrapped = TimmEncoder(model, named, image_size, mean, std, fresh).eval()
    wrapped.interpolation = resized if resized in KERNELS else None
    if is_vit:
        untold = Untold(image_size, _heads(model), None, "timm", mean, std, wrapped.interpolation)
        with suppress(ValueError):
            return as_trainable(wrapped, model, our_names(model, model.state_dict()), untold, PLAIN)
    return wrapped


def _from_file(name: str, file: str) -> dict[str, Any]:
    """What to change in timm's description of pretrained weights: the file's take their place, with their classes."""
    import timm

    elsewhere = {"hf_hub_id": None, "url": None}
    if file.endswith(".npz"):  # the layout of Google's models; NumPy reads it without running code
        return {**elsewhere, "file": file, "custom_load": True}
    weights = timm.models.clean_state_dict(read_weights(file, WRAPPERS))
    heads = getattr(timm.get_pretrained_cfg(name), "classifier", None) or ()
    heads = (heads,) if isinstance(heads, str) else heads
    sizes = [len(weights[f"{head}.weight"]) for head in heads if f"{head}.weight" in weights]
    return {**elsewhere, "state_dict": weights, "custom_load": False, "num_classes": sizes[0] if sizes else 0}


def unknown_name(library: str, name: str, known: list[str]) -> ValueError:
    """The error of a name that a library does not have, with the nearest ones."""
    close = difflib.get_close_matches(name.partition(".")[0], known, n=3)
    advice = f"Did you mean {', '.join(close)}?" if close else f"`{library}.list_models()` names them."
    return ValueError(f"{library}:NAME must be a model that {library} has; got {name}. {advice}")

"""Vision transformers of the transformers library: `hf:NAME` downloads, `hf:FOLDER` reads what `save_pretrained` wrote.

They are run as they are, whatever they are called inside: hooks listen to their blocks and to their last attention.
"""

import copy
import inspect
import json
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pantomim.formats.wrapped import Said, WrappedEncoder, missing_extra, one_size

LAYERS = ("layers", "layer", "encoder.layers", "encoder.layer", "model.layers", "model.layer")  # what the blocks are
NORMS = ("layernorm", "post_layernorm", "norm")  # and the final norm is called
PREPROCESSING = "preprocessor_config.json"


class _Ear:
    """What the blocks said in the last pass, from the block `first` on, and the last attention."""

    def __init__(self) -> None:
        self.first = 0
        self.blocks: list[Tensor] = []
        self.attention: Tensor | None = None

    def hear_block(self, number: int, module: nn.Module, given: Any, said: Any) -> None:
        if number >= self.first:
            self.blocks.append(said[0] if isinstance(said, tuple) else said)

    def hear_attention(self, module: nn.Module, given: Any, said: Any) -> None:
        self.attention = said[1]


class HFEncoder(WrappedEncoder):
    """A vision transformer of transformers behind an encoder's interface; runs on whole images only.

    Args:
        model: The vision network, without a head.
        source: How the user names it.
        image_size: Height and width, in pixels.
        mean: Mean of each channel, in the scale of the images.
        std: Deviation of each channel.
        projection: What CLIP's tower has after its final norm.

    Raises:
        ValueError: if its blocks, its final norm or its grid of patches cannot be found.
    """

    projection: Tensor | None

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
        super().__init__(source, image_size, mean, std)
        self.model, self.ear = model.eval(), _Ear()
        self.register_buffer("projection", projection)
        self.projected = None if projection is None else projection.shape[1]
        self.ends = ("block", "norm") if projection is None else ("block", "norm", "projection")
        self.layers_name, self.norm_name = _name_of(model, LAYERS), _name_of(model, NORMS)
        size = getattr(model.config, "patch_size", None)
        if not self.layers_name or not self.norm_name or not isinstance(size, int):
            raise ValueError(
                f"{source} must be a vision transformer with patches, blocks and a final norm; got "
                f"{type(model).__name__}. Choose another, such as ViT, DINOv2 or CLIP."
            )
        if any(side % size for side in image_size):
            raise one_size(source, image_size, image_size)
        self.grid = (image_size[0] // size, image_size[1] // size)
        if shuffles := model.config.model_type == "vit_mae":
            model.config.mask_ratio = 0.0  # every patch is seen
        self.shuffles = shuffles
        resamples = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if resamples else {}
        self._listen()
        with torch.no_grad():
            said = self.say(torch.zeros(1, self.in_chans, *image_size)).blocks[0]
        self.width, self.num_prefix = said.shape[2], said.shape[1] - self.grid[0] * self.grid[1]
        if self.num_prefix < 0:
            raise one_size(source, image_size, image_size)
        self.has_class_token = self.num_prefix > int(getattr(model.config, "num_register_tokens", 0) or 0)

    def _listen(self) -> None:
        """Put hooks on the blocks and, where its attention can be had, on the last block's."""
        layers: Any = self.model.get_submodule(self.layers_name)
        self.num_blocks = len(layers)
        for number, layer in enumerate(layers):
            layer.register_forward_hook(_Hook(self.ear, number))
        within = _attention_of(self, layers[-1])
        self.has_attention = within is not None
        if within is not None:
            within.register_forward_hook(self.ear.hear_attention)

    def say(
        self, images: Float[Tensor, "B C H W"], blocks: int = 1, query: Literal["class", "mean"] | None = None
    ) -> Said:
        """What so many last blocks say; the last one's attention is there in any case."""
        self.ear.first, self.ear.blocks = self.num_blocks - blocks, []
        given: dict[str, Any] = {"pixel_values": self.standardised(images), **self.options}
        if self.shuffles:  # by the order of this noise: it leaves patches where they are
            given["noise"] = torch.arange(self.grid[0] * self.grid[1], device=images.device).expand(len(images), -1)
        self.model(**given)
        said, full = self.ear.blocks, self.ear.attention
        self.ear.blocks, self.ear.attention = [], None
        if query is None or full is None:
            return Said(said)
        rows = slice(0, 1) if query == "class" else slice(self.num_prefix, None)
        return Said(said, full[:, :, rows].mean(dim=(1, 2))[:, self.num_prefix :])

    def norm(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """The final norm, of all tokens; CLIP itself has it of the class token alone."""
        return self.model.get_submodule(self.norm_name)(tokens)

    def project(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B T K"]:
        """CLIP's projection, of all tokens."""
        assert self.projection is not None
        return tokens @ self.projection

    def resized(self, image_size: tuple[int, int]) -> "HFEncoder":
        """The same network for images of another size; it resamples its positions as it runs.

        Raises:
            ValueError: if it is made for one size.
        """
        if image_size == self.image_size:
            return self
        model = copy.deepcopy(self.model)
        _without_hooks(model)
        try:
            resized = HFEncoder(model, self.source, image_size, *self._statistics(), projection=self.projection)
        except (ValueError, RuntimeError) as error:
            raise one_size(self.source, self.image_size, image_size) from error
        resized.mean, resized.std = self.mean, self.std
        return resized

    def untrained(self) -> "HFEncoder":
        """The same network with fresh weights."""
        model = type(self.model)(copy.deepcopy(self.model.config))
        return HFEncoder(model, self.source, self.image_size, *self._statistics())

    def _statistics(self) -> list[tuple[float, ...]]:
        return [tuple(values.tolist()) for values in (self.mean, self.std)]


class _Hook:
    """Hears a block by its number."""

    def __init__(self, ear: _Ear, number: int) -> None:
        self.ear, self.number = ear, number

    def __call__(self, module: nn.Module, given: Any, said: Any) -> None:
        self.ear.hear_block(self.number, module, given, said)


def load_hf(name: str) -> HFEncoder:
    """A vision transformer as an encoder, in evaluation mode, in float32.

    Args:
        name: As on the hub, or a folder that `save_pretrained` of model and image processor wrote.

    Raises:
        ValueError: if transformers is not installed, the folder does not hold such a network, or nothing tells mean
            and deviation.
        ConnectionError: if the weights are neither in the cache nor to be had.
    """
    try:
        import transformers  # takes seconds, so only where it is needed
    except ImportError as error:
        raise missing_extra(f"hf:{name}", "hf") from error
    source, local = f"hf:{name}", Path(name).is_dir()
    messages = transformers.utils.logging
    verbosity, bar = messages.get_verbosity(), messages.is_progress_bar_enabled()
    messages.set_verbosity_error()  # what it would warn of is an error below
    messages.disable_progress_bar()
    try:
        kind = _class_of(transformers.AutoConfig.from_pretrained(name, local_files_only=local))
        model, report = kind.from_pretrained(
            name, dtype=torch.float32, local_files_only=local, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if local or not isinstance(error, OSError):
            raise ValueError(
                f"{source} must be a folder with a model of transformers, or its name on the hub; got {reason}. Write "
                f"the folder with save_pretrained, of the model and of its image processor."
            ) from error
        raise ConnectionError(
            f"{source} must be in the cache or to be downloaded; got {reason}. Check the name, connect to the network "
            f"once, set HF_HOME to a cache that has it, or give a folder: hf:FOLDER."
        ) from error
    finally:
        messages.set_verbosity(verbosity)
        if bar:
            messages.enable_progress_bar()
    absent = [key for key in report["missing_keys"] if "pooler" not in key.split(".")]  # nobody asks what pools
    if absent or report["mismatched_keys"]:
        raise ValueError(
            f"{source} must hold the weights of {type(model).__name__}; missing or mis-shaped: "
            f"{', '.join(map(str, [*absent, *report['mismatched_keys']]))}. Check that weights and config belong "
            f"together."
        )
    vision = getattr(model, "vision_model", model)
    projection = getattr(model, "visual_projection", None)
    size = getattr(vision.config, "image_size", None)
    if not isinstance(size, int | list | tuple):
        raise ValueError(f"{source} must state an image_size; got {type(vision).__name__} without. Choose a ViT.")
    image_size = (size, size) if isinstance(size, int) else tuple(size)
    table = None if projection is None else projection.weight.detach().T.contiguous()
    return HFEncoder(vision, source, image_size, *_statistics(name, source), projection=table).eval()


def _class_of(config: Any) -> Any:
    """What reads a model: AutoModel, which would leave out CLIP's projection where the tower is alone."""
    import transformers

    alone = transformers.CLIPVisionModelWithProjection
    return alone if alone.__name__ in (config.architectures or ()) else transformers.AutoModel


def _statistics(name: str, source: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that the network's image processor states."""
    from transformers.utils import cached_file

    path = cached_file(name, PREPROCESSING, _raise_exceptions_for_missing_entries=False)
    try:
        settings = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
        return tuple(map(float, settings["image_mean"])), tuple(map(float, settings["image_std"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{source} must have a {PREPROCESSING} that states image_mean and image_std; got none. Write it beside the "
            f"weights with the image processor's save_pretrained."
        ) from error


def _name_of(model: nn.Module, names: tuple[str, ...]) -> str:
    """The first of the names that the model has; empty, if none."""
    there = dict(model.named_modules())
    return next((name for name in names if name in there), "")


def _attention_of(encoder: HFEncoder, last: nn.Module) -> nn.Module | None:
    """The part of the last block that gives its attention, brought to compute it; None, if there is no such part."""
    config = copy.deepcopy(encoder.model.config)
    config._attn_implementation = "eager"
    parts = [part for part in last.modules() if hasattr(part, "config") and part is not last]
    found: list[nn.Module] = []

    def look(module: nn.Module, given: Any, said: Any) -> None:
        if isinstance(said, tuple) and len(said) > 1 and isinstance(said[1], Tensor) and said[1].dim() == 4:
            found.append(module)

    hooks = [part.register_forward_hook(look) for part in last.modules()]
    for part in parts:
        part.config = config
    with torch.no_grad():
        encoder.say(torch.zeros(1, encoder.in_chans, *encoder.image_size))
    for hook in hooks:
        hook.remove()
    return found[0] if found else None


def _without_hooks(model: nn.Module) -> None:
    for module in model.modules():
        module._forward_hooks.clear()

from pathlib import Path

from tyro.conf import Positional

from pantomim.cli.command_line import typed
from pantomim.cli.console import say


def _layouts() -> str:
    from pantomim.formats import FORMATS

    return f"Layouts: {', '.join(layout.name for layout in FORMATS)}."


@typed(also=_layouts)
def import_(
    file: Positional[Path],
    out: Path,
    format: str | None = None,
    heads: int | None = None,
    decoder_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> None:
    """Turn a checkpoint of the methods' authors into our files; any other is refused.

    Examples:
        pantomim import mae_pretrain_vit_base.pth --out mae_base

    Args:
        file: The checkpoint.
        out: Folder for encoder.safetensors, encoder.json and what else the file holds.
        format: Whose layout it is, where it cannot be told; mmpretrain's is ColorMAE's, the others are their authors'.
        heads: Attention heads, for widths that no published model has.
        decoder_heads: The same for the decoder.
        image_size: Height and width in pixels, where they differ.
        mean: Mean of each channel, where they are not three, or where a file of BEiT's does not tell.
        std: Standard deviation of each channel.
    """
    from pantomim.formats import Given, import_checkpoint

    say(str(import_checkpoint(file, out, format, Given(heads, decoder_heads, image_size, mean, std))))

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from pantomim.cli.command_line import typed
from pantomim.cli.console import say


@typed()
def export(
    run: Positional[str],
    to: Literal["timm", "hf", "onnx", "exported_program"],
    out: Path | None = None,
    image_size: tuple[int, int] | None = None,
    images: str | None = None,
    push: str | None = None,
) -> None:
    """Write an encoder, classifier or segmenter for timm, transformers, ONNX or torch.export, and compare it with ours.

    Examples:
        pantomim export runs/first --to timm
        pantomim export runs/classes --to onnx --out classes_onnx

    Args:
        run: A run folder, whose classifier or segmenter is written if it has one; RUN/encoder.safetensors; a file,
            timm:NAME, open_clip:NAME:TAG, hf:NAME or clip:FILE.
        to: Whose files.
        out: A new folder (RUN/export/TO).
        image_size: Height and width, positions resampled; by default those of training.
        images: What `pretrain --data` takes, to compare on; by default the data of the run.
        push: A new, private repository on the hub of Hugging Face, which the folder is uploaded to.
    """
    from pantomim.formats.exports import export as write

    say(str(write(run, to, out, image_size=image_size, images=images, push=push)))

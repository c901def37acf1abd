from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional

from pantomim.cli.command_line import typed
from pantomim.cli.console import say, warn


@typed("Classifier", "Segmenter", config=())
def predict(
    run: Positional[str],
    images: Positional[str],
    out: Path,
    top: int | None = None,
    all: Annotated[bool, FlagCreatePairsOff] = False,
    overlays: Annotated[bool, FlagCreatePairsOff] = False,
    overwrite: Annotated[bool, FlagCreatePairsOff] = False,
    chunk: int | None = None,
    scale: float | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Classify or segment new images: pantomim predict RUN IMAGES --out FILE.csv or, of a segmenter, FOLDER.

    Args:
        run: The folder of a fine-tuned run, or the weights of its classifier or segmenter.
        images: An image, or what `pretrain --data` takes; labels are not needed.
        out: Of a classifier FILE.csv, a row an image; of a segmenter a folder, a mask an image.
        top: Of a classifier: so many classes for each image, the likeliest first (3).
        all: The probability of every class instead, one column each.
        overlays: Of a segmenter: also write each image with the colours of its classes over it.
        overwrite: Replace what is there of the same names.
        chunk: Of a classifier: images at once (256).
        scale: The stored value that becomes 1; by default by the number type, 255 for 8-bit images.
        device: "auto" takes a GPU if there is one.
    """
    from pantomim.engine.runtime import usable_device
    from pantomim.evaluate.predict import ERRORS
    from pantomim.evaluate.predict import predict as write

    options = {"top": top, "all": all, "overlays": overlays, "chunk": chunk}
    where = usable_device("predict", device)
    found = write(run, images, out, overwrite=overwrite, scale=scale, device=where, **options)
    say(f"{found.num_predicted:,} images predicted in {out}.")
    if found.unreadable:
        first = f"{found.unreadable[0].name}: {found.unreadable[0].reason}"
        reasons = "the column error" if out.is_file() else out / ERRORS
        warn(f"{len(found.unreadable):,} images cannot be read; {reasons} says why. The first: {first}")

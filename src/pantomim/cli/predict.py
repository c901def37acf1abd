from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional

from pantomim.cli.command_line import typed
from pantomim.cli.console import say, warn


@typed("Classifier", config=())
def predict(
    run: Positional[str],
    images: Positional[str],
    out: Path,
    top: int = 3,
    all: Annotated[bool, FlagCreatePairsOff] = False,
    overwrite: Annotated[bool, FlagCreatePairsOff] = False,
    chunk: int = 256,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Classify new images: pantomim predict RUN IMAGES --out FILE.csv [--top K | --all].

    Args:
        run: The folder of a fine-tuned run, or its classifier.safetensors.
        images: An image, or what `pretrain --data` takes; labels are not needed.
        out: FILE.csv, a row an image.
        top: So many classes for each image, the likeliest first.
        all: The probability of every class instead, one column each.
        overwrite: Replace the file if it exists.
        chunk: Images at once.
        device: "auto" takes a GPU if there is one.
    """
    from pantomim.engine.runtime import usable_device
    from pantomim.evaluate.predict import predict as write

    for name, value in (("top", top), ("chunk", chunk)):
        if value < 1:
            raise ValueError(f"predict.{name} must be at least 1; got {value}.")
    where = usable_device("predict", device)
    found = write(run, images, out, top=top, every_class=all, overwrite=overwrite, chunk=chunk, device=where)
    say(f"{found.num_predicted:,} images predicted in {out}.")
    if found.unreadable:
        first = f"{found.unreadable[0].name}: {found.unreadable[0].reason}"
        warn(f"{len(found.unreadable):,} images cannot be read; the column error says why. The first: {first}")

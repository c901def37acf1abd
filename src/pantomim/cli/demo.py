from pathlib import Path
from typing import Annotated

import tyro

from pantomim.cli.command_line import typed
from pantomim.cli.console import progress, say


@typed()
def demo(
    images: Annotated[str | None, tyro.conf.Positional] = None,
    out: Path | None = None,
    labels_per_class: tuple[int, ...] = (10,),
    draws: int = 3,
    seed: int = 0,
    steps: int | None = None,
    finetune_steps: int | None = None,
) -> None:
    """See in some minutes what pre-training without labels is worth: pantomim demo [my_photos/].

    Args:
        images: Your own, with or without one folder a class, as `pretrain` takes them; by default 5,000 digits and some
            photographs that come with other packages.
        out: The folder of the page and of all runs, where a demo that was stopped continues; by default runs/demo, or
            runs/demo-NAME for your own images.
        labels_per_class: Labelled digits that the contenders learn from, the first in the headline; several make a
            learning curve.
        draws: Of the labelled digits.
        seed: Of all training.
        steps: Of pre-training.
        finetune_steps: Of training with labels, pre-trained and from scratch alike.
    """
    progress("Loading. The same command resumes a demo that was stopped.")
    from pantomim.demo import Demo, show, show_own

    folder = out or Path("runs", "demo" if images is None else f"demo-{Path(images).resolve().stem}")
    asked = Demo(folder, labels_per_class, draws, seed, steps, finetune_steps)
    page, sentence = show(asked) if images is None else show_own(asked, images)
    say(f"Page: {page}\n{sentence}")

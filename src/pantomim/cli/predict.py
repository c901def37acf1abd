from pathlib import Path

import tyro

from pantomim import verbs
from pantomim.cli.command_line import CommandLine, options_of
from pantomim.cli.console import say, warn


def predict(line: CommandLine) -> None:
    """Classify or segment new images: pantomim predict RUN IMAGES --out FILE.csv or, of a segmenter, FOLDER.

    Examples:
        pantomim predict runs/classes new_photos/ --out classes.csv
        pantomim predict runs/masks new_photos/ --out masks/ --overlays
    """
    how = (tyro.conf.FlagCreatePairsOff,)
    given = line.read(options_of(verbs.predict), "Classifier", "Segmenter", config=how)
    found, out = verbs.predict(**given), Path(given["out"])
    say(f"{found.num_predicted:,} images predicted in {out}.")
    if found.unreadable:
        from pantomim.evaluate.predict import ERRORS

        first = f"{found.unreadable[0].name}: {found.unreadable[0].reason}"
        reasons = "the column error" if out.is_file() else out / ERRORS
        warn(f"{len(found.unreadable):,} images cannot be read; {reasons} says why. The first: {first}")

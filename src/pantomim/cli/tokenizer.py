"""`pantomim tokenizer train` and `encode`: learn to turn images into ids, and do it."""

from pathlib import Path
from typing import TYPE_CHECKING

from pantomim import verbs
from pantomim.cli.command_line import CommandLine, typed
from pantomim.cli.console import say, say_broken, section, warn
from pantomim.cli.pretrain import in_words, say_complete
from pantomim.cli.run_options import read_run
from pantomim.core.machine import Device, is_main_process

if TYPE_CHECKING:
    from pantomim.tokenizers.usage import CodeUsage


def tokenizer(line: CommandLine) -> None:
    """Turn images into ids: pantomim tokenizer train --data SRC --out RUN, or tokenizer encode --tokenizer T ..."""
    line.choose({"train": _train, "encode": _encode})(line)


def _train(line: CommandLine) -> None:
    """Train a tokenizer: pantomim tokenizer train [RECIPE] --data SRC --out RUN [--steps N] [--any.setting value].

    Examples:
        pantomim tokenizer train --data my_photos/ --out runs/tokenizer
        pantomim tokenizer train vqkd --teacher runs/first --data my_photos/ --out runs/codes --steps 500
    """
    without = ("init", "target", "tokenizer", "stages", "reinit", "evaluate", "minutes", "extend")
    arguments, settings = read_run(line, verbs.pretrain, without)
    prepared = verbs.planned(arguments["recipe"], arguments, trains="tokenizer")
    out = verbs.folder_of(arguments["out"])
    config = prepared.config
    from pantomim.analysis.tokens import PICTURE, write_tokenizer_report
    from pantomim.engine.pretrain import pretrain as run
    from pantomim.recipes.dvae import fitted

    if prepared.num_images is not None:  # schedules are still to be fitted
        config = fitted(config, prepared.num_images, settings)
    finished = run(config, out)
    if not is_main_process():
        return
    say_complete(out, finished.already)
    measured = write_tokenizer_report(out)
    rows = [("training", in_words(finished)), ("codes", str(measured.usage))]
    if measured.mse is not None:
        errors = f"{measured.mse:.5f} from hard ids; {measured.mse_of_means:.5f} from each cell's mean"
        rows += [("reconstruction", f"mean squared error {errors}"), ("picture", str(out / PICTURE))]
    section("On images that it was not trained on", rows)
    _warn_of_usage(measured.usage, f"the tokenizer {out}")
    say(f"\nTokenizer: {out}, for --tokenizer {out}")


@typed("write_ids")
def _encode(
    data: str,
    out: Path,
    tokenizer: str = "",
    split: str = "all",
    scale: float | None = None,
    image_size: tuple[int, int] | None = None,
    patch_size: int | None = None,
    vocabulary: int | None = None,
    batch_size: int = 128,
    device: Device = "auto",
) -> None:
    """Write the id of every cell of every image: pantomim tokenizer encode --tokenizer T --data SRC --out FILE.npz.

    Examples:
        pantomim tokenizer encode --tokenizer runs/tokenizer --data my_photos/ --out ids.npz

    Args:
        data: What `pretrain --data` takes.
        out: FILE.npz; ids that are there already are kept if tokenizer, data and transform are the same.
        tokenizer: RUN, dalle:FILE, dalle:FOLDER, random-projection or random-projection-standardised (both also :SEED).
        split: train, val, test or all.
        scale: The stored value that becomes 1; by default by the number type, 255 for 8-bit images.
        image_size: Height and width that the tokenizer sees; by default the images', if it is the same for all.
        patch_size: Of a random projection.
        vocabulary: Of a random projection; 8192 unless given.
        batch_size: Images at once.
        device: "auto" takes a GPU if there is one.
    """
    from pantomim.analysis.tokens import write_ids
    from pantomim.core.files import check_out
    from pantomim.data.sources import open_source
    from pantomim.engine.runtime import usable_device
    from pantomim.tokenizers import load_tokenizer

    check_out("ids", out, [".npz"])
    where = usable_device("tokenizer", device)
    projection = tokenizer.startswith("random-projection")
    for option, value in (("patch_size", patch_size), ("vocabulary", vocabulary)):
        if value is not None and not projection:
            raise ValueError(f"tokenizer.{option} goes with random-projection; {tokenizer} fixes it. Leave it out.")
    if projection and patch_size is None:
        raise ValueError(f"tokenizer.patch_size must be given for {tokenizer}: the size of its cells in pixels.")
    dataset = open_source(data, split, scale)
    found = load_tokenizer(
        tokenizer, patch_size=patch_size or 16, in_chans=dataset.channels, vocabulary=vocabulary or 8192
    )
    ids = write_ids(found, dataset, out, image_size=image_size, batch_size=batch_size, device=where)
    num_images, rows, cols = ids.ids.shape
    done = "written to" if ids.fresh else "are up to date in"
    say(f"{num_images:,} x {rows} x {cols} ids {done} {out}: {ids.usage}.")
    _warn_of_usage(ids.usage, f"the tokenizer {tokenizer}")
    say_broken(dataset.broken)


def _warn_of_usage(usage: "CodeUsage", whose: str) -> None:
    from pantomim.tokenizers.usage import usage_warning

    if (warning := usage_warning(usage, whose)) is not None:
        warn(warning)

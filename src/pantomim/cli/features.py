from pathlib import Path

from pantomim.cli.command_line import typed
from pantomim.cli.console import say, say_broken, warn
from pantomim.core.names import check_there


@typed()
def features(
    encoder: str,
    data: str,
    out: Path,
    split: str = "all",
    scale: float | None = None,
    image_size: tuple[int, int] | None = None,
) -> None:
    """Write the features of every image to a table.

    Examples:
        pantomim features --encoder runs/first --data my_photos/ --out features.npz

    Args:
        encoder: A run folder, a file, timm:NAME, open_clip:NAME:TAG, hf:NAME or clip:FILE.
        data: What `pretrain --data` takes.
        out: FILE.npz or FILE.parquet.
        split: train, val, test or all.
        scale: The stored value that becomes 1; by default by the number type, 255 for 8-bit images.
        image_size: Height and width at which images are encoded, positions resampled; by default the encoder's own.
    """
    from pantomim.data.sources import open_source
    from pantomim.evaluate import features as made
    from pantomim.formats import load_encoder, resized_encoder

    made.check_features_path(out)
    check_there("features.encoder", encoder)
    dataset, loaded = open_source(data, split, scale), load_encoder(encoder)
    loaded = resized_encoder(loaded, image_size or loaded.image_size)
    table = made.extract(loaded, dataset)
    if (warning := made.collapse_warning(loaded, dataset)) is not None:
        warn(warning)
    made.save_features(table, out)
    say(f"{len(table.names):,} rows written to {out}. Values: {dataset.scale.rule}.")
    say_broken(dataset.broken)

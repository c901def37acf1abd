from tyro.conf import Positional

from pantomim.cli.command_line import typed
from pantomim.cli.console import section


@typed()
def stats(source: Positional[str], scale: float | None = None) -> None:
    """Print size, channels, classes, mean and standard deviation of a data set.

    Examples:
        pantomim stats my_photos/

    Args:
        source: What `pretrain --data` takes.
        scale: The stored value that becomes 1; by default by the number type, 255 for 8-bit images.
    """
    from pantomim.data.names import count_left_out
    from pantomim.data.sources import open_source
    from pantomim.data.stats import channel_stats

    dataset = open_source(source, "train", scale)
    values, facts = channel_stats(dataset), dataset.facts
    sizes = "{}x{}".format(*facts.size) if facts.size else f"mixed, median shorter side {facts.median_shorter_side}"
    rows = [
        ("images for training", f"{len(dataset):,}"),
        ("size", sizes),
        ("channels", f"{facts.channels} of {facts.dtype}"),
        ("classes", str(facts.num_classes or "none: no labels")),
        ("scale", dataset.scale.rule),
        ("mean", " ".join(f"{value:.4f}" for value in values.mean)),
        ("std", " ".join(f"{value:.4f}" for value in values.std)),
        *(("constant", f"channel {channel}: its std is 0, and 1 is taken") for channel in values.constant),
        ("skipped", f"{count_left_out(dataset.left_out)}; {len(dataset.broken)} broken images"),
    ]
    section(source, rows + [("broken", f"{item.name}: {item.reason}") for item in dataset.broken])

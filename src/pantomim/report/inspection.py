"""What the blocks of encoders do, on a page of its own and in the report of a run."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pantomim.analysis.block_facts import BlockFacts, Kind
from pantomim.core.files import replace_file
from pantomim.report.charts import Chart, head_chart, map_chart, share_chart
from pantomim.report.html import check_page_path, fill_template

TITLES: dict[Kind, str] = {
    "attention-distance": "How far the heads look",
    "spectrum": "How few directions the tokens lie in",
    "cka": "Which layers are alike",
}


def write_inspection(found: BlockFacts, out: Path) -> Path:
    """Write the page; it needs no other file.

    Raises:
        ValueError: as `check_page_path`.
        OSError: if the file cannot be written.
    """
    check_page_path("inspect", out)
    text = fill_template(
        "inspection.html",
        title=TITLES[found.kind],
        lead=caption(found),
        charts=panels(found),
        headings=headings(found),
        rows=rows(found),
    )
    replace_file(out, text.encode())
    return out


def block_charts(inside: Sequence[BlockFacts], *, named: bool = False) -> list[tuple[Chart, str]]:
    """The charts of several analyses, each with what it shows in its title; the last one of each has the caption.

    Encoders are `named` in the titles, else only where there are several.
    """
    charts = []
    for found in inside:
        shown = panels(found)
        for number, chart in enumerate(shown, 1):
            title = TITLES[found.kind] + (f": {chart.title}" if named or len(shown) > 1 else "")
            charts.append((Chart(title, chart.wide), caption(found) if number == len(shown) else ""))
    return charts


def panels(found: BlockFacts) -> list[Chart]:
    """A chart an encoder, or, for CKA, a map for each two and each one with itself; axes are the same in all."""
    numbers = range(len(found.names))
    if found.kind == "cka":
        pairs = [*itertools.combinations(numbers, 2), *((number, number) for number in numbers)]
        named = [(found.names[a], found.names[b], found.between(a, b)) for a, b in pairs]
        return [Chart(a if a == b else f"{a} and {b}", map_chart(values, a, b)) for a, b, values in named]
    values = [found.of("shares" if found.kind == "spectrum" else "distance", number) for number in numbers]
    highest = max(float(own.max()) for own in values)
    if found.kind == "spectrum":
        return [Chart(name, share_chart(own, highest, name)) for name, own in zip(found.names, values, strict=True)]
    uniform = [float(found.of("uniform", number)) for number in numbers]
    highest = max(highest, *uniform)
    return [
        Chart(name, head_chart(own, even, highest, name))
        for name, own, even in zip(found.names, values, uniform, strict=True)
    ]


def caption(found: BlockFacts) -> str:
    """What one must know to read the charts."""
    about = found.about
    where = "training images (there is no other split)" if about["split"] == "train" else "held-out images"
    images = f"{about['images']:,} {where} of {about['dataset']}, drawn with seed {about['seed']}."
    if found.kind == "attention-distance":
        return (
            "A dot is a head: the mean distance in pixels between a patch and the patches that it attends to. Line: "
            "mean over heads. Dashed: attention alike to all tokens. Attention to prefix tokens counts as distance 0. "
            f"{images}"
        )
    if found.kind == "spectrum":
        return (
            "The share of the k largest singular values in the sum of all, of an image's patch tokens after each "
            f"block, each divided by its length; 1 where all tokens point one way. {images}"
        )
    rest = about.get("left_out", 0)
    left_out = f" {rest:,} more fill no batch and are left out." if rest else ""
    return (
        "Linear CKA of the patch tokens after each block: 1 (yellow) where two layers tell images apart in the same "
        "way up to rotation and scale, about 0 (violet) where they have nothing in common. Mean over whole batches of "
        f"{about['batch_size']}, {images}{left_out}"
    )


def headings(found: BlockFacts) -> list[str]:
    """Of the table."""
    return ["layer", *found.names] if found.kind != "cka" else ["layer", "most alike", "CKA"]


def rows(found: BlockFacts) -> list[list[str]]:
    """The numbers behind the charts, a row a layer: means over heads, P_1 ... P_5, or the most alike layer."""
    if found.kind == "cka":
        first, second = 0, min(1, len(found.names) - 1)
        values = np.nan_to_num(found.between(first, second), nan=-np.inf)
        if first == second:
            np.fill_diagonal(values, -np.inf)
        return [
            [f"{found.names[first]} {layer}", f"{found.names[second]} {other}", f"{values[layer, other]:.3f}"]
            for layer, other in enumerate(values.argmax(axis=1))
        ]

    def cell(number: int, layer: int) -> str:
        if layer >= found.about["encoders"][number]["depth"]:
            return ""
        if found.kind == "spectrum":
            return "  ".join(f"{share:.3f}" for share in found.of("shares", number)[layer])
        heads = found.of("distance", number)[layer]
        return f"{heads.mean():.1f} ({heads.min():.1f} to {heads.max():.1f})"

    depth = max(encoder["depth"] for encoder in found.about["encoders"])
    return [[str(layer), *(cell(number, layer) for number in range(len(found.names)))] for layer in range(depth)]

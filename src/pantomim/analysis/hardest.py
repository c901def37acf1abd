"""The images that a fine-tuned classifier is furthest from, of each set that it was scored on."""

from pathlib import Path

import numpy as np

from pantomim.analysis.pictures import PictureRows, Row, read_images, write_rows
from pantomim.analysis.runs import NUM_PHOTOS, run_config
from pantomim.data.pictures import to_picture
from pantomim.data.sources import open_source
from pantomim.evaluate.base import read_scored
from pantomim.evaluate.classification import Classification

SIDE = 160  # pixels of a picture's longer side


def write_hardest(run: str | Path, *, source: str | None = None, count: int = NUM_PHOTOS) -> Path | None:
    """Pictures of the images of the highest loss in RUN/analysis/hardest.npz, a row a file of scores; None without."""
    config, folder = run_config(run), Path(run)
    rows, warnings = [], []
    for file in sorted((folder / "eval").glob(f"{Classification.stem}-*.json")):
        scored = read_scored(file)
        data, hardest = scored["data"], scored["trained"]["hardest"][:count]
        spec = source if source is not None and data["spec"] == config.data.source else data["spec"]
        try:
            dataset = open_source(spec, data["test_split"], data["scale"]["divisor"])
        except (ValueError, OSError) as error:
            warnings.append(f"No pictures of the hardest images of {scored['dataset']}: {error}")
            continue
        places = {name: index for index, name in enumerate(dataset.names)}
        if gone := [image["name"] for image in hardest if image["name"] not in places]:
            warnings.append(f"No pictures of the hardest images: {spec} has no {', '.join(gone)} any more.")
            continue
        longest = max(data["image_size"])
        size = (round(data["image_size"][0] * SIDE / longest), round(data["image_size"][1] * SIDE / longest))
        images, names = read_images(dataset, size, np.array([places[image["name"]] for image in hardest]))
        told = {
            image["name"]: f"{image['true']} · predicted {image['predicted']}, "
            f"{100 * image['probability']:.0f} % · {image['name']}"
            for image in hardest
        }
        values = images.numpy()
        pictures = to_picture(values, values, dataset.scale)
        rows.append(Row(file.stem, "", pictures, tuple(told[name] for name in names)))
    if not rows and not warnings:
        return None
    caption = "The centre of each image as the classifier is shown it, the highest loss first: the true class, the one "
    caption += "predicted with its probability, the file. Look at them: some may be labelled wrongly."
    found = PictureRows((), tuple(rows), caption, warnings=tuple(warnings), columns=6)
    return write_rows(found, folder / "analysis" / "hardest.npz")[0]

"""What a segmenter makes of images that it has not seen: the image, its true classes, and the predicted ones."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pantomim.analysis.pictures import shown_words
from pantomim.analysis.runs import choose, run_config
from pantomim.core.files import write_npz
from pantomim.data.layout import part_names
from pantomim.data.mask_files import overlaid, palette
from pantomim.data.pictures import to_photo
from pantomim.data.sources import open_split
from pantomim.data.stream import whole_images
from pantomim.data.transforms import fitted_size, nearest_pixels, resize_one
from pantomim.evaluate import evaluation_of
from pantomim.evaluate.features import check_images
from pantomim.evaluate.segmenter import SegmenterEvaluation, TrainedSegmenter

SIDE = 320  # pixels of a picture, at most
OPACITY = 0.6  # of the colours over the image


def write_segmentations(run: str | Path, *, source: str | None = None, count: int = 6, seed: int = 0) -> Path:
    """Segment test images of a finished run's own data; writes `RUN/analysis/segmentations.npz`.

    The file holds for each image k `image_k`, `truth_k` and `prediction_k`, 8-bit pictures (H, W, 3), and as JSON in
    `about` the names of the images, a caption, and the colours of the classes that occur in them.
    """
    trained, evaluation = TrainedSegmenter.open(run, torch.device("cpu")), evaluation_of(run_config(run), Path(run))
    assert isinstance(evaluation, SegmenterEvaluation)
    evaluation = replace(evaluation, data=source or evaluation.data)
    contents, masks = evaluation.source
    contents = replace(contents, scale=evaluation.scale)
    dataset = open_split(contents, evaluation.data, part_names(contents.splits)["test"])
    check_images(trained.module.encoder, dataset)
    masks = masks.listed(class_id - masks.reduce_zero for class_id in trained.about["class_ids"])
    arrays: dict[str, np.ndarray] = {}
    items, occur, none = list[str](), set[int](), trained.about["no_class"] % 256
    chosen = choose(dataset, count, seed)
    for image, truth, index in whole_images(dataset, masks, trained.base, "cpu", chosen, workers=0):
        photo, (height, width) = to_photo(dataset.read(index), dataset.scale), truth.shape
        side, whole = min(SIDE, max(height, width)), np.array([0, 0, height, width])
        size = fitted_size((height, width), side, side)
        small = resize_one(photo, whole, size, flip=False, interpolation="bilinear").numpy()
        rows, columns = (nearest_pixels(*sides) for sides in zip(truth.shape, size, strict=True))
        number = len(items)
        arrays[f"image_{number}"] = small.transpose(1, 2, 0)
        for kind, classes in (("truth", truth), ("prediction", trained.predicted(image, truth.shape)[0])):
            ids = trained.stored(classes.numpy()[rows[:, None], columns]) % 256  # colours are those of written masks
            arrays[f"{kind}_{number}"] = overlaid(small, ids, none, OPACITY)
            occur |= set(np.unique(ids).tolist())
        items.append(dataset.name_of(index))
    from matplotlib.colors import to_hex  # takes long, so only where it is needed

    named = zip(trained.about["class_ids"], trained.classes, strict=True)
    caption = f"{len(items)} images of the {dataset.split} part of {dataset.name}, drawn with seed {seed}."
    caption += shown_words(dataset)
    colours = {name: to_hex(palette()[k % 256] / 255) for k, name in named if k % 256 in occur}
    about = {"items": items, "colours": colours, "caption": caption}
    return write_npz(Path(run) / "analysis" / "segmentations.npz", arrays | {"about": np.array(json.dumps(about))})

import json

import numpy as np
import pytest
from image_files import fill
from masked_images import ade20k_files, masked_arrays
from segmenter_folder import write_segmenter
from tiny import tiny_run

from pantomim.analysis import write_pictures
from pantomim.analysis.segmentations import OPACITY, write_segmentations
from pantomim.config import DataConfig, MaskConfig, replace, to_yaml
from pantomim.data.mask_files import overlaid
from pantomim.data.masks import read_masked
from pantomim.data.sources import open_split
from pantomim.methods.segment import SegmentConfig


def run_on(folder, source, **about):
    run = write_segmenter(folder, **about)
    config = replace(tiny_run(source), data=DataConfig(str(source), masks=MaskConfig()), method=SegmentConfig())
    (run / "config.yaml").write_text(to_yaml(config))
    return run


def test_pictures_are_of_the_test_part_with_the_colours_of_written_masks(tmp_path):
    source = masked_arrays(tmp_path / "arrays.npz", counts=(4, 8), side=20)
    run = run_on(tmp_path / "run", source)
    with np.load(write_pictures(run)) as found:
        about = json.loads(str(found["about"]))
        assert len(about["items"]) == 6
        assert about["caption"] == "6 images of the test part of arrays, drawn with seed 0."
        assert about["colours"] == {"black": "#000000", "red": "#800000", "green": "#008000"}
        contents, masks = read_masked(str(source))
        dataset = open_split(contents, str(source), "test")
        for k, name in enumerate(about["items"]):
            image = dataset.read(dataset.names.index(name))
            assert (found[f"image_{k}"] == image.transpose(1, 2, 0)).all()
            assert (found[f"truth_{k}"] == overlaid(image, masks.read(name), 255, OPACITY)).all()
            assert found[f"prediction_{k}"].shape == (20, 20, 3)


def test_large_images_are_shrunk_and_pixels_without_a_class_stay_as_they_are(tmp_path):
    files = ade20k_files(counts=(4, 2))
    run = run_on(tmp_path / "run", fill(tmp_path / "ade", files), class_ids=[1, 2, 3], no_class=0)
    with np.load(write_segmentations(run, count=1)) as found:
        assert (found["truth_0"][:2] == found["image_0"][:2]).all(), "0 is no class there"
        assert found["image_0"].shape == (20, 18, 3)
    wide = masked_arrays(tmp_path / "wide.npz", counts=(2, 1), side=400)
    with np.load(write_segmentations(run_on(tmp_path / "other", wide), count=1)) as found:
        assert {found[f"{kind}_0"].shape for kind in ("image", "truth", "prediction")} == {(320, 320, 3)}


def test_data_that_have_moved_are_told(tmp_path):
    run = run_on(tmp_path / "run", tmp_path / "nowhere.npz")
    with pytest.raises(ValueError, match=r"Source\.spec must be a folder"):
        write_pictures(run)

import dataclasses
import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import fill, png
from masked_images import COLOURS, ade20k_files, encoded, masked_files, masked_folder, regions
from PIL import Image

from pantomim.data.decoding import BrokenImageError, decode_mask
from pantomim.data.masks import Masks, open_masked, read_masked
from pantomim.data.sources import open_split
from pantomim.data.stores import FileStore
from pantomim.data.stream import evaluation_batches

SHARED = Path(__file__).parents[4] / "shared" / "data"


def opened(spec, split="train", masks=None, **options):
    contents, found = read_masked(str(spec), masks, **options)
    return open_split(contents, str(spec), split), found


def test_masks_are_found_by_the_names_of_images(tmp_path):
    root = masked_folder(tmp_path / "set")
    for split, count in {"train": 12, "val": 3, "test": 5}.items():
        dataset, masks = opened(root, split)
        assert len(dataset) == count
        for index, name in enumerate(dataset.names):
            assert (COLOURS[masks.read(name)].transpose(2, 0, 1) == dataset.read(index)).all()
    assert dataset.name == "set"
    assert masks.name == "masks"
    assert masks.names == {0: "black", 1: "red", 2: "green"}
    drawn = dataset.part(2)
    assert masks.read(drawn.names[1]).shape == drawn.read(1).shape[1:]


def test_the_same_from_a_zip_and_from_a_folder_in_it(tmp_path):
    for name, inner in (("flat.zip", ""), ("deep.zip", "some/where/")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for file, data in masked_files({"train": 3, "test": 2}).items():
                archive.writestr(inner + file, data)
            archive.writestr(inner + "classes.json", json.dumps({"masks": ["a", "b", "c"], "others": ["x"]}))
        dataset, masks = opened((tmp_path / name / inner) if inner else tmp_path / name)
        assert dataset.name == (inner.rstrip("/").rsplit("/")[-1] or "flat")
        assert masks.names == {0: "a", 1: "b", 2: "c"}
        assert (COLOURS[masks.read(dataset.names[2])].transpose(2, 0, 1) == dataset.read(2)).all()


def test_an_npz_and_another_array_of_it(tmp_path):
    masks = np.stack([regions(k, (8, 8)) for k in range(10)])
    other = masks.astype(np.int64) * 10
    split = np.array(["train"] * 6 + ["test"] * 4)
    images = COLOURS[masks]
    np.savez(tmp_path / "a.npz", images=images, masks=masks, cover=other, split=split, mask_classes=["k", "r", "g"])
    dataset, found = opened(tmp_path / "a.npz", "test")
    assert (found.read(dataset.names[3]) == masks[9]).all()
    assert found.names == {0: "k", 1: "r", 2: "g"}
    dataset, found = opened(tmp_path / "a.npz", "test", masks="cover")
    assert (found.read(dataset.names[0]) == other[6]).all()
    assert found.names == {}
    with pytest.raises(ValueError, match=r"an array \(N, H, W\) of class ids; got none of that name for clouds"):
        read_masked(str(tmp_path / "a.npz"), "clouds")


def test_several_folders_of_masks_must_be_chosen_from(tmp_path):
    root = fill(masked_folder(tmp_path / "two"), {"masks12/train/000.png": encoded(regions(0, (40, 30)))})
    with pytest.raises(ValueError, match=r"several; got .* with masks, masks12\. Choose one"):
        read_masked(str(root))
    assert read_masked(str(root), "masks12")[1].name == "masks12"
    with pytest.raises(ValueError, match=r"got masks7\. It has masks, masks12"):
        read_masked(str(root), "masks7")


@pytest.mark.parametrize("spec", ["mnist", "set"])
def test_a_source_without_masks(tmp_path, spec, monkeypatch):
    fill(tmp_path / "set", {"images/train/0.png": png(0)})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="must have masks beside its images"):
        read_masked(spec)


def test_images_without_a_mask_that_fits_are_broken(tmp_path):
    files = masked_files({"train": 400, "test": 1}, (10, 8))
    del files["masks/train/007.png"]
    files["masks/train/019.png"] = files["masks/train/019.png"][:-60]
    files["masks/train/300.png"] = encoded(regions(0, (9, 9)))
    files["masks/train/301.png"] = encoded(COLOURS[regions(0, (11, 9))])
    dataset, masks = opened(fill(tmp_path / "cut", files))
    survey = masks.survey(dataset)
    assert survey.ids == (0, 1, 2)
    assert survey.size == (11, 8)
    told = {broken.name: broken.reason for broken in dataset.broken}
    assert told.keys() == {f"train/{k}.png" for k in ("007", "019", "300", "301")}
    assert told["train/007.png"] == "has no mask in masks"
    assert "has a mask of 9x9 pixels, itself 10x8" in told["train/300.png"]
    assert "RGB" in told["train/301.png"]
    used = np.concatenate([found for _, found in evaluation_batches(dataset, (8, 8), 64, "cpu", workers=0)])
    assert len(used) == 396
    del files["masks/train/001.png"]
    dataset, masks = opened(fill(tmp_path / "more", files))
    with pytest.raises(ValueError, match=r"1 % of the images; got 5 of 400"):
        masks.survey(dataset)


def test_negative_ids_are_classes_of_nothing(tmp_path):
    masks = np.where(np.arange(36).reshape(6, 6) < 9, -1, 1).astype(np.int16)
    np.savez(tmp_path / "n.npz", images=np.zeros((5, 6, 6, 3), np.uint8), masks=np.stack([masks] * 5))
    dataset, found = opened(tmp_path / "n.npz")
    with pytest.raises(ValueError, match=r"got 255, and -1 in masks.*Set ignore to -1"):
        found.survey(dataset)
    dataset, found = opened(tmp_path / "n.npz", ignore=-1)
    assert found.survey(dataset).ids == (1,)


@pytest.mark.parametrize("image_size", [(24, 16), (16, 24), (40, 30), (80, 60)])
@pytest.mark.parametrize("kind", ["files", "array"])
def test_masks_lie_where_their_images_do(tmp_path, image_size, kind):
    if kind == "files":
        dataset, masks = opened(masked_folder(tmp_path / "set"))
    else:
        held = np.stack([regions(k, (40, 30)) for k in range(12)])
        np.savez(tmp_path / "a.npz", images=COLOURS[held], masks=held)
        dataset, masks = opened(tmp_path / "a.npz")
    images, indices = next(evaluation_batches(dataset, image_size, 64, "cpu", workers=0))
    found = masks.resized(dataset, indices, image_size)
    colours = torch.from_numpy(COLOURS[:3]).float() / 255
    nearest = (images[:, None] - colours[:, :, None, None]).square().sum(dim=2).argmin(dim=1)

    def agreement(rows, columns):
        moved = found.roll((rows, columns), (1, 2))[:, 2:-2, 2:-2]
        return (moved == nearest[:, 2:-2, 2:-2]).double().mean().item()

    right = agreement(0, 0)
    assert right > 0.96
    assert max(agreement(1, 0), agreement(-1, 0), agreement(0, 1), agreement(0, -1)) < right - 0.01


def test_ids_are_read_as_stored(tmp_path):
    ids = regions(0, (5, 7))
    assert (decode_mask(encoded(ids)).ids == ids).all()
    assert (decode_mask(encoded(ids, "P")).ids == ids).all(), "a palette's colours do not matter"
    assert (decode_mask(encoded(ids > 0)).ids == (ids > 0)).all(), "one bit is 0 and 1, not 255"
    np.save(tmp_path / "ids.npy", ids.astype(np.int16) - 1)
    assert (decode_mask(tmp_path / "ids.npy").ids == ids.astype(int) - 1).all()
    np.save(tmp_path / "float.npy", ids.astype(np.float32))
    with pytest.raises(BrokenImageError, match="whole"):
        decode_mask(tmp_path / "float.npy")


def with_palette(mask, *colours):
    picture = Image.fromarray(mask)
    picture.putpalette(np.asarray(colours, np.uint8).tobytes())
    picture.save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def test_palettes_that_differ_number_other_things(tmp_path):
    black, red, green = (0, 0, 0), (250, 0, 0), (0, 250, 0)
    files = masked_files({"train": 200, "test": 1}, (10, 8))
    names = sorted(name for name in files if name.startswith("masks/train"))
    masks = {name: regions(k, (10 + k % 3, 8 + k % 2)) for k, name in enumerate(names)}
    files |= {name: with_palette(mask, black, red, green) for name, mask in masks.items()}
    fill(tmp_path / "one", files)
    dataset, found = opened(tmp_path / "one")
    assert found.survey(dataset).ids == (0, 1, 2)
    files |= {name: with_palette(mask, red, black, green) for name, mask in list(masks.items())[7:9]}
    dataset, found = opened(fill(tmp_path / "two", files))
    found.survey(dataset)
    assert [item.name for item in dataset.broken] == ["train/007.png", "train/008.png"]
    assert re.search(r"id 1 is \[0, 0, 0\] instead of \[250, 0, 0\]", dataset.broken[0].reason)
    files |= {name: with_palette(mask, red, black, green) for name, mask in list(masks.items())[:100]}
    dataset, found = opened(fill(tmp_path / "half", files))
    with pytest.raises(ValueError, match=r"(?s)got \d+ of 200.*another palette than the first"):
        found.survey(dataset)


def test_what_is_ignored_is_counted_and_told(tmp_path):
    mask = np.zeros((10, 10), np.uint8)
    mask[:3] = 255
    files = {
        f"{kind}/{s}/{k}.png": png(k, (10, 10)) for kind in ("images",) for s in ("train", "test") for k in range(3)
    }
    files |= {f"masks/{s}/{k}.png": encoded(mask) for s in ("train", "test") for k in range(3)}
    root = str(fill(tmp_path / "set", files))
    with pytest.raises(ValueError, match=r"value 255, of 30% of the pixels, counts as no class.*such as 254"):
        open_masked(root)
    opened_whole = open_masked(root, ignore=254)
    assert opened_whole.ids == (0, 255)
    assert opened_whole.ignored == {part: {"pixels": 0, "share": 0.0} for part in ("train", "test")}
    dataset, masks = opened(root)
    assert masks.survey(dataset).ignored == {"pixels": 90, "share": 0.3}


def test_classes_that_cannot_be_read(tmp_path):
    root = fill(masked_folder(tmp_path / "set"), {"classes.json": b'{"zero": "black"}'})
    with pytest.raises(ValueError, match=r"classes\.json in .* does not for masks"):
        read_masked(str(root))


@pytest.mark.parametrize("kind", ["folder", "wrapped folder", "zip"])
def test_ade20k_as_distributed(tmp_path, kind):
    files, spec = ade20k_files("" if kind == "folder" else "ADEChallengeData2016/"), tmp_path / "ade"
    if kind == "zip":
        spec = tmp_path / "ade.zip"
        with zipfile.ZipFile(spec, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
            archive.writestr("__MACOSX/ADEChallengeData2016/._images", b"")
    else:
        fill(spec, files)
    for split, count in (("train", 6), ("val", 3)):
        dataset, masks = opened(spec, split)
        assert len(dataset) == count
        assert masks.survey(dataset).ids == (0, 1, 2)
        mask = masks.read(dataset.names[1])
        assert (mask[:2] == 255).all()
        assert (mask[2, :5] == 255).all(), "255 in the file is no class either"
        assert (mask[3:] == regions(1, (20, 18))[3:]).all()
        assert (masks.numbered(dataset.names[1], (20, 18))[3:] == regions(1, (20, 18))[3:]).all()
    assert dataset.name == "ade"
    assert (masks.name, masks.reduce_zero) == ("annotations", True)
    assert masks.names == {0: "wall", 1: "bed", 2: "windowpane, window"}
    _, kept = opened(spec, reduce_zero=False)
    assert kept.names == {1: "wall", 2: "bed", 3: "windowpane, window"}


def test_a_table_of_classes_that_cannot_be_read(tmp_path):
    root = fill(tmp_path / "ade", ade20k_files() | {"objectInfo150.txt": b"wall,bed\nwall,bed\n"})
    with pytest.raises(ValueError, match=r"Masks.names must be the last column of objectInfo150.txt"):
        read_masked(str(root))


def test_zero_may_be_no_class_anywhere(tmp_path):
    root = masked_folder(tmp_path / "set")
    dataset, masks = opened(root, reduce_zero=True)
    assert masks.names == {0: "red", 1: "green"}
    plain = opened(root)[1].read(dataset.names[0])
    assert (masks.read(dataset.names[0]) == np.where(plain == 0, 255, plain - 1)).all()
    assert (masks.numbered(dataset.names[0], plain.shape) == masks.read(dataset.names[0])).all()
    for ignore in (0, 1):
        with pytest.raises(ValueError, match=rf"Masks.ignore must be a value that is no class.*got {ignore} in masks"):
            read_masked(str(root), ignore=ignore, reduce_zero=True)


def test_class_numbers_count_the_listed_classes(tmp_path):
    mask = np.array([[3, 7, 7], [200, 3, 9]], np.int32)
    np.savez(tmp_path / "a.npz", images=np.zeros((1, 2, 3, 3), np.uint8), masks=mask[None])
    dataset, masks = opened(tmp_path / "a.npz", "all", ignore=200)
    listed = dataclasses.replace(masks, names={9: "nine", 3: "three", 7: "seven"})
    numbers = listed.numbered(dataset.names[0], (2, 3))
    assert numbers.tolist() == [[0, 1, 1], [255, 0, 2]]
    for names in ({3: "a", 7: "b"}, {3: "a", 7: "b", 1000: "c"}):
        with pytest.raises(BrokenImageError, match="with class 9, neither in the list"):
            dataclasses.replace(masks, names=names).numbered(dataset.names[0], (2, 3))
    with pytest.raises(BrokenImageError, match="of 2x3 pixels, itself 3x2"):
        listed.numbered(dataset.names[0], (3, 2))
    with pytest.raises(ValueError, match="at most 255; got 256"):
        dataclasses.replace(masks, names={k: str(k) for k in range(256)}).class_ids()


def test_masks_with_classes_that_are_not_listed_are_broken(tmp_path):
    files = masked_files({"train": 200}, (10, 8)) | {"classes.json": b'["black", "red", "green"]'}
    files["masks/train/005.png"] = encoded(np.full((12, 9), 7, np.uint8))
    dataset, masks = opened(fill(tmp_path / "set", files))
    assert masks.survey(dataset).ids == (0, 1, 2)
    ((name, reason),) = ((broken.name, broken.reason) for broken in dataset.broken)
    assert name == "train/005.png"
    assert reason == "has a mask in masks with class 7, neither in the list of classes nor ignored"


@pytest.mark.skipif(not SHARED.exists(), reason="needs the image sets")
def test_real_sets():
    dataset, masks = opened(SHARED / "ccp_seg_192.zip", "val", masks="masks12")
    assert dataset.name == "ccp_seg_192"
    assert masks.survey(dataset).ids == tuple(range(12))
    assert masks.names[9] == "footwear"
    dataset, masks = opened(SHARED / "water7_ms_64.npz", "test")
    assert masks.survey(dataset).ids == (0, 1)
    assert masks.names == {0: "other", 1: "water"}
    stored = np.load(SHARED / "water7_ms_64.npz")
    shares = [(masks.read(name) == 1).mean() for name in dataset.names]
    assert np.mean(shares) == pytest.approx((stored["masks"][stored["split"] == "test"] == 1).mean())
    dataset, masks = opened(SHARED / "multispectral_tif_samples.zip" / "water12")
    assert masks.survey(dataset).ids == (0, 1)


def test_two_classes_of_one_name_are_refused_before_training(tmp_path):
    masks = Masks("masks", 255, {1: "sea", 2: "sea"}, FileStore(tmp_path, []), {})
    with pytest.raises(ValueError, match=r"Masks\.names must be different; got sea"):
        masks.class_ids()

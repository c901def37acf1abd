import numpy as np
import pytest
import torch
from image_files import fill
from masked_images import COLOURS, encoded, masked_files, masked_folder, regions

from pantomim.core.batch import IGNORE
from pantomim.data.augment import Augment
from pantomim.data.mask_crops import PADDING, MaskCrop, class_counts, crop_place, cropped_pair, row_random
from pantomim.data.masks import read_masked
from pantomim.data.sources import open_split
from pantomim.data.stream import Stream, whole_images
from pantomim.data.transforms import Crop, View

MEAN = (0.2, 0.3, 0.4)
CROP = MaskCrop(base=(60, 40), ratio=(0.5, 2.0), fill=MEAN)
PLAIN = MaskCrop(base=(60, 40), ratio=(0.5, 2.0), distortion=None, fill=MEAN)


def stream(spec, crop=CROP, batch_size=4, split="train", **changes):
    contents, masks = read_masked(str(spec), ignore=changes.pop("ignore", 255))
    options = {"image_size": (32, 24), "seed": 3, "device": "cpu", "workers": 0, "masks": masks, **changes}
    return Stream(open_split(contents, str(spec), split), batch_size=batch_size, crop=crop, **options)


def bands(path, num_images=12, size=(20, 20)):
    """Seven bands, the class in each of them."""
    masks = np.stack([regions(k, size) for k in range(num_images)])
    images = (np.arange(1, 8)[None, :, None, None] * masks[:, None] * 500).astype(np.int16)
    masks[:, 0, 0] = 255
    np.savez(path, images=images, masks=masks, mask_classes=["a", "b", "c"])
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return masked_folder(tmp_path_factory.mktemp("set"))


def nearest_class(images):
    colours = torch.from_numpy(COLOURS[:3]).float() / 255
    return (images[:, None] - colours[:, :, None, None]).square().sum(dim=2).argmin(dim=1)


def test_masks_stay_where_their_images_are(folder):
    right = []
    shifts = {(1, 0): [], (-1, 0): [], (0, 1): [], (0, -1): []}
    for (batch,) in stream(folder, PLAIN, batch_size=12).batches(0, 8):
        seen, inside = nearest_class(batch.images), batch.masks != IGNORE
        right.append((seen == batch.masks)[inside].double().mean().item())
        for shift, agreed in shifts.items():
            agreed.append((seen.roll(shift, (1, 2)) == batch.masks)[inside].double().mean().item())
    assert np.mean(right) > 0.97
    assert max(map(np.mean, shifts.values())) < np.mean(right) - 0.02


def test_batches_have_class_numbers_and_the_mean_beside_images(folder):
    filled = False
    for (batch,) in stream(folder).batches(0, 6):
        assert batch.images.shape == (4, 3, 32, 24)
        assert batch.masks.shape == (4, 32, 24)
        assert (batch.images.dtype, batch.masks.dtype) == (torch.float32, torch.int64)
        assert set(batch.masks.unique().tolist()) <= {0, 1, 2, IGNORE}
        assert batch.labels is None
        beside = batch.masks == IGNORE  # these masks ignore nothing else
        assert (batch.images.movedim(1, 3)[beside] == torch.tensor(MEAN)).all()
        for inside in ~beside:
            rows, columns = inside.any(dim=1).sum(), inside.any(dim=0).sum()
            assert inside[:rows, :columns].all(), "filled up on the right and at the bottom"
        filled = filled or bool(beside.any())
    assert filled


def flat(made):
    return [batch for step in made for batch in step]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.masks, two.masks)
        assert torch.equal(one.ids, two.ids)


@pytest.mark.parametrize("kind", ["files", "bands"])
def test_any_step_can_be_made_again_by_any_number_of_processes(folder, tmp_path, kind):
    spec, crop = (folder, CROP) if kind == "files" else (bands(tmp_path / "a.npz"), MaskCrop((30, 20), fill=(0.1,)))
    whole = flat(stream(spec, crop).batches(0, 7))
    assert_same(whole[4:], flat(stream(spec, crop).batches(4, 7)))
    assert not torch.equal(whole[0].images, whole[3].images), "another epoch, other crops"
    assert not torch.equal(whole[0].images, flat(stream(spec, crop, seed=4).batches(0, 1))[0].images)
    ranks = [list(stream(spec, crop, rank=rank, world=2, micro=2).batches(4, 7)) for rank in range(2)]
    for step in range(3):
        parts = [ranks[rank][step][part] for part in range(2) for rank in range(2)]
        assert [part.start for part in parts] == [0, 1, 2, 3]
        assert torch.equal(torch.cat([part.images for part in parts]), whole[4 + step].images)
        assert torch.equal(torch.cat([part.masks for part in parts]), whole[4 + step].masks)


def test_batches_do_not_depend_on_workers(folder):
    assert_same(flat(stream(folder).batches(1, 5)), flat(stream(folder, workers=1).batches(1, 5)))


def test_seven_bands(tmp_path):
    plain = MaskCrop((20, 20), (1.0, 1.0), max_share=1.0, flip=False, distortion=None, fill=(0.1,))
    ((batch,),) = stream(bands(tmp_path / "a.npz"), plain, image_size=(20, 20)).batches(0, 1)
    known = batch.masks != IGNORE
    assert batch.images.shape == (4, 7, 20, 20)
    for band in range(7):
        assert torch.allclose(batch.images[:, band][known], (band + 1) * batch.masks[known] * 0.05)


def test_crops_show_several_classes_or_ten_were_refused():
    for seed in range(60):
        mask = regions(seed, (40, 50))
        mask[:, :10] = IGNORE
        random = Counting(row_random(0, 0, seed))
        top, left = crop_place(mask, (16, 16), 0.6, IGNORE, random)
        counts = class_counts(mask[top : top + 16, left : left + 16], IGNORE)
        good = len(counts) > 1 and counts.max() / counts.sum() < 0.6
        assert random.asked == 22 or good
        assert random.asked % 2 == 0
    assert crop_place(mask, (64, 64), 1.0, IGNORE, random) == (0, 0), "a mask that is smaller"


class Counting:
    def __init__(self, random):
        self.random, self.asked = random, 0

    def integers(self, low, high):
        self.asked += 1
        return self.random.integers(low, high)


def test_ignored_pixels_do_not_count():
    mask = np.full((8, 8), IGNORE, np.uint8)
    mask[0, :3], mask[1, :2] = 1, 0
    assert class_counts(mask, IGNORE).tolist() == [2, 3]
    assert class_counts(mask, 1).tolist() == [2, 59]


def test_every_place_is_drawn():
    mask = np.zeros((10, 9), np.uint8)
    places = {crop_place(mask, (8, 8), 1.0, IGNORE, row_random(0, step, 0)) for step in range(200)}
    assert places == {(top, left) for top in range(3) for left in range(2)}


def test_a_mirrored_crop_mirrors_both():
    image, mask = np.arange(48, dtype=np.uint8).reshape(3, 4, 4), np.arange(16).reshape(4, 4)
    crop = MaskCrop((4, 4), (1.0, 1.0), max_share=1.0, distortion=None)
    found = set()
    for row in range(12):
        part, ids = cropped_pair(image, mask, crop, (5, 4), row_random(0, 0, row), ignore=IGNORE)
        mirrored = ids[0, 0].item() == 3
        assert torch.equal(part[0, :4].flip(1) if mirrored else part[0, :4], torch.from_numpy(image[0]))
        assert torch.equal(part[0, :4].long(), ids[:4].long())
        assert (ids[4] == PADDING).all()
        assert (part[:, 4] == 0).all()
        found.add(mirrored)
    assert found == {True, False}


def test_whole_images_keep_the_size_of_their_masks(folder):
    made = stream(folder, split="test")
    seen = list(whole_images(made.dataset, made._masks, (90, 60), "cpu"))
    assert [index for _, _, index in seen] == list(range(5))
    for image, mask, index in seen:
        height, width = made.dataset.size(index)
        assert mask.shape == (height, width)
        scale = min(90 / height, 60 / width)
        assert image.shape == (1, 3, int(height * scale + 0.5), int(width * scale + 0.5))
        back = torch.nn.functional.interpolate(image, mask.shape, mode="bilinear")
        assert (nearest_class(back)[0] == mask).double().mean() > 0.97
    some = whole_images(made.dataset, made._masks, (90, 60), "cpu", np.array([3, 1]))
    assert [index for _, _, index in some] == [3, 1]


def test_images_without_a_mask_that_fits_are_replaced_in_training_and_left_out_in_tests(tmp_path):
    files = masked_files({"train": 200, "test": 1}, (10, 8)) | {"classes.json": b'["black", "red", "green"]'}
    files["masks/train/005.png"] = encoded(np.full((12, 9), 7, np.uint8))
    del files["masks/train/011.png"]
    made = stream(fill(tmp_path / "set", files), MaskCrop((10, 8), fill=(0.0,)), batch_size=100, image_size=(8, 8))
    batches = flat(made.batches(0, 2))
    ids = torch.cat([batch.ids for batch in batches]).tolist()
    assert sorted({*range(200)} - {*ids}) == [5, 11]
    assert {broken.name: broken.reason for broken in made.dataset.broken} == {
        "train/005.png": "has a mask in masks with class 7, neither in the list of classes nor ignored",
        "train/011.png": "has no mask in masks",
    }
    seen = whole_images(made.dataset.subset(np.arange(100, 200)), made._masks, (10, 8), "cpu", workers=0)
    assert len(list(seen)) == 100
    del files["masks/train/013.png"]
    made = stream(fill(tmp_path / "more", files), MaskCrop((10, 8), fill=(0.0,)), batch_size=100, image_size=(8, 8))
    with pytest.raises(ValueError, match=r"(?s)1 % of the images; got 3 of 200.*train/013.png: has no mask in masks"):
        list(made.batches(0, 2))


@pytest.mark.parametrize(
    "changes", [{"masks": None}, {"crop": Crop()}, {"augment": Augment()}, {"second": View(Crop())}]
)
def test_what_masks_do_not_go_with(folder, changes):
    with pytest.raises(ValueError, match=r"Stream.masks must go with a MaskCrop"):
        stream(folder, **changes)


def test_a_stream_needs_a_list_of_classes_and_a_fill_for_every_band(tmp_path):
    spec = fill(tmp_path / "set", masked_files({"train": 4}))
    with pytest.raises(ValueError, match=r"Masks.names must list the classes to train on, at most 255; got 0"):
        stream(spec)
    with pytest.raises(ValueError, match=r"MaskCrop.fill must have one value, or one for each of the 7 channel"):
        stream(bands(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"base": (512, 2048)}, r"MaskCrop.base must be the longest and the shortest side"),
        ({"ratio": (2.0, 0.5)}, r"MaskCrop.ratio must be two rising ratios"),
        ({"ratio": (0.0, 0.5)}, r"MaskCrop.ratio must be above 0"),
        ({"max_share": 1.5}, r"MaskCrop.max_share must be in \[0, 1\]"),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(ValueError, match=message):
        MaskCrop(**wrong)

import numpy as np
import pytest
import torch
from masked_images import COLOURS, masked_folder, regions

from pantomim.core.scores import count_pixels, intersection_over_union
from pantomim.data.masks import open_masked
from pantomim.evaluate import segmentation
from pantomim.evaluate.features import pixel_patches
from pantomim.evaluate.linear import train_probes
from pantomim.evaluate.parts import MaskedParts
from pantomim.evaluate.segmentation import (
    Pictures,
    Segmentation,
    class_shares,
    patch_table,
    standard_error,
)
from pantomim.formats.timm import load_timm
from pantomim.formats.wrapped import resized_encoder
from pantomim.nn.vit import EncoderConfig

CPU = torch.device("cpu")
SIDE = 12
QUICK = Segmentation("run", "data", lrs=(0.3, 3.0), steps=100)


def write(path, masks, images=None, split=None):
    split = np.array(["train", "train", "train", "test"] * len(masks))[: len(masks)] if split is None else split
    np.savez(path, images=COLOURS[masks.clip(max=3)] if images is None else images, masks=masks, split=split)
    return str(path)


@pytest.fixture
def masks():
    return np.stack([regions(k, (SIDE, SIDE)) for k in range(24)])


def pictures(spec, *, image_size=(SIDE, SIDE), grid=(SIDE, SIDE), **options):
    source = MaskedParts(**vars(open_masked(spec, None, options.pop("ignore", 255), **options)))
    return Pictures(source, image_size, grid, 5, CPU)


def by_colour(images):
    return pixel_patches(images, tuple(images.shape[2:]))


def scores(spec, extractor=by_colour, **options):
    return QUICK.score({"one": extractor}, pictures(spec, **options))["one"]


def test_what_a_linear_map_can_tell_is_told_in_full(tmp_path, masks):
    found = scores(write(tmp_path / "a.npz", masks))
    assert found["miou"] == 1.0
    assert found["pixel_accuracy"] == 1.0
    assert found["iou"] == {"class 0": 1.0, "class 1": 1.0, "class 2": 1.0}
    assert found["miou_error"] == 0.0
    assert found["validation"] == {"miou": 1.0}


def test_a_mask_in_the_wrong_place_is_not(tmp_path, masks):
    shifted = np.roll(masks, 2, axis=2)
    assert scores(write(tmp_path / "a.npz", shifted, COLOURS[masks]))["miou"] < 0.8


def test_blind_features_score_as_background_alone(tmp_path, masks):
    found = scores(write(tmp_path / "a.npz", masks), lambda images: images.new_zeros(len(images), SIDE * SIDE, 2))
    test = masks[3::4]
    best = max((test == k).mean() for k in range(3))
    assert found["miou"] <= best / 3 + 1e-9
    assert found["pixel_accuracy"] <= best + 1e-9


@pytest.mark.parametrize("ignore", [255, 7])
def test_pixels_without_a_class_are_neither_learned_from_nor_scored(tmp_path, masks, ignore):
    colours, shown = COLOURS[masks], masks.copy()
    ignored = np.random.default_rng(0).random(masks.shape) < 0.3
    colours[ignored] = COLOURS[(masks[ignored] + 1) % 3]  # with the colours of another class
    shown[ignored] = ignore
    spec = write(tmp_path / "a.npz", shown, colours)
    found = scores(spec, ignore=ignore)
    assert found["miou"] == 1.0
    assert list(found["iou"]) == ["class 0", "class 1", "class 2"]
    assert pictures(spec, ignore=ignore).source.masks.ignore == ignore


def test_the_mean_is_over_classes_in_masks_or_predictions(tmp_path, masks):
    masks = masks.copy()
    masks[:12][masks[:12] == 0] = 3  # only in train
    masks[-12:][masks[-12:] == 1] = 9  # only in test, unknown to train
    split = np.array(["train"] * 12 + ["test"] * 12)
    images = COLOURS[masks.clip(max=3)]
    spec = write(tmp_path / "a.npz", masks, images, split)
    source = pictures(spec)
    assert source.source.about(encoder())["classes_unknown_to_train"] == ["class 0", "class 9"]
    found = QUICK.score({"one": by_colour}, source)["one"]
    assert found["iou"].keys() == {"class 0", "class 1", "class 2", "class 3", "class 9"}
    assert [found["iou"][f"class {k}"] for k in (1, 3, 9)] == [0, 0, 0], "two only predicted, one never"
    assert found["miou"] == pytest.approx(sum(found["iou"].values()) / 5)


def test_the_same_scores_twice_and_whatever_the_batch(tmp_path, masks):
    spec = write(tmp_path / "a.npz", masks, COLOURS[np.roll(masks, 1, axis=1)])
    assert scores(spec) == scores(spec)
    source = pictures(spec)
    larger = Pictures(source.source, source.image_size, source.grid, 24, CPU)
    again = QUICK.score({"one": by_colour}, larger)["one"]
    assert again["miou"] == pytest.approx(scores(spec)["miou"], abs=1e-4)


def test_without_a_val_part_whole_training_images_are_held_out(tmp_path, masks, monkeypatch):
    lengths = []

    def remember(features, *arguments, **options):
        lengths.append(len(features) / SIDE**2)
        return train_probes(features, *arguments, **options)

    monkeypatch.setattr(segmentation, "train_probes", remember)
    scores(write(tmp_path / "two.npz", masks))
    assert lengths == [14, 18], "18 images: four held out to choose the rate, then all are learned from"
    lengths.clear()
    split = np.array(["train"] * 12 + ["val"] * 6 + ["test"] * 6)
    scores(write(tmp_path / "three.npz", masks, split=split))
    assert lengths == [12]


def test_the_standard_error_is_that_of_other_draws_of_images():
    rng = np.random.default_rng(0)

    def drawn(count):
        truth = torch.from_numpy(rng.integers(0, 3, (count, 4, 4)))
        right = torch.from_numpy(rng.random((count, 1, 1)) < 0.7)
        return count_pixels(torch.where(right, truth, (truth + 1) % 3), truth, 3)

    spread = np.std([intersection_over_union(drawn(50).sum(dim=0)).mean().item() for _ in range(300)])
    assert np.mean([standard_error(drawn(50), 0) for _ in range(10)]) == pytest.approx(spread, rel=0.2)


@pytest.mark.parametrize(("size", "grid"), [((8, 12), (2, 3)), ((7, 10), (3, 4))])
def test_shares_of_classes_pixel_by_pixel(size, grid):
    classes = torch.randint(-1, 4, (3, *size), generator=torch.Generator().manual_seed(0))
    found = class_shares(classes, grid, 4)
    for b, row, column in np.ndindex(3, *grid):
        inside = [
            classes[b, y, x].item()
            for y, x in np.ndindex(*size)
            if (y * grid[0] // size[0], x * grid[1] // size[1]) == (row, column)
        ]
        expected = [inside.count(k) / len(inside) for k in range(4)]
        assert found[b, row * grid[1] + column].tolist() == pytest.approx(expected)


def test_shares_as_targets_are_ids_where_they_are_pure_and_pixels_where_they_are_not():
    generator = torch.Generator().manual_seed(0)
    features, ids = torch.randn(64, 6, generator=generator), torch.randint(3, (64,), generator=generator)
    pure = torch.nn.functional.one_hot(ids, 3).float()
    by_id, by_share = (
        train_probes(features, targets, 3, (0.1, 0.5), epochs=5, batch_size=16, seed=1) for targets in (ids, pure)
    )
    torch.testing.assert_close(by_id.weight, by_share.weight, rtol=1e-4, atol=1e-6)

    shares = torch.rand(64, 3, generator=generator)
    shares *= torch.rand(64, 1, generator=generator) / shares.sum(dim=1, keepdim=True)
    ours = train_probes(features, shares, 3, (0.5,), epochs=1, batch_size=64, seed=1)
    layer = torch.nn.Linear(6, 3)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    (-(shares * layer(ours.standardise(features)).log_softmax(dim=1)).sum() / 64).backward()
    torch.testing.assert_close(ours.weight[:, 0], -0.5 * layer.weight.grad.T)
    torch.testing.assert_close(ours.bias[0], -0.5 * layer.bias.grad)


def test_too_many_patches_are_drawn_from_each_image_with_their_classes(tmp_path, masks, monkeypatch):
    def oracle(images):
        classes = (images.permute(0, 2, 3, 1)[:, :, :, :2] > 0.5).float().flatten(1, 2)  # red, green
        return torch.cat([classes, torch.arange(SIDE * SIDE).expand(len(images), -1)[:, :, None]], dim=2)

    whole = pictures(write(tmp_path / "a.npz", masks))
    monkeypatch.setattr(segmentation, "MAX_VALUES", 18 * 6 * 10)
    table = patch_table({"oracle": oracle}, whole, "train", seed=0)
    assert table.features["oracle"].shape == (18, 10, 3)
    assert (table.features["oracle"][:, :, :2] == table.shares[:, :, 1:]).all()
    places = table.features["oracle"][:, :, 2]
    assert (places.diff(dim=1) > 0).all(), "ten different ones of each image"
    assert len(places.unique()) > 60
    again = patch_table({"oracle": oracle}, whole, "train", seed=0)
    assert torch.equal(again.features["oracle"], table.features["oracle"])


def encoder(image_size=(32, 32), patch_size=4, position="sincos"):
    torch.manual_seed(0)
    config = EncoderConfig(
        image_size=image_size, patch_size=patch_size, width=16, depth=1, heads=2, position=position, registers=2
    )
    return config.build().eval()


def fitting_size(encoder, size):
    return MaskedParts({}, None, (), (), size).size_for(encoder)


@pytest.mark.parametrize(
    ("own", "patch_size", "size", "expected"),
    [
        ((32, 32), 4, (289, 192), (96, 64)),  # twice 8 patches along the shorter side
        ((32, 32), 4, (192, 289), (64, 96)),
        ((32, 32), 4, (64, 64), (64, 64)),  # as they are
        ((32, 32), 4, (40, 30), (36, 28)),
        ((224, 224), 16, (512, 683), (448, 592)),
        ((32, 32), 4, (3, 50), (4, 48)),  # at least one patch
    ],
)
def test_the_size_is_that_of_the_images_as_far_as_the_encoder_goes(own, patch_size, size, expected):
    assert fitting_size(encoder(own, patch_size), size) == expected


@pytest.mark.parametrize("position", ["sincos", "learned"])
def test_an_encoder_of_another_size_has_its_positions_resampled(position):
    ours = encoder(position=position)
    state = torch.random.get_rng_state()
    resized = resized_encoder(ours, (96, 64))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert resized.grid == (24, 16)
    assert not resized.training
    assert torch.equal(resized.pos_embed[:, :3], ours.pos_embed[:, :3])
    assert torch.equal(resized.blocks[0].attn.qkv.weight, ours.blocks[0].attn.qkv.weight)
    assert resized(torch.rand(2, 3, 96, 64)).patches.shape == (2, 384, 16)
    assert resized_encoder(ours, (32, 32)) is ours
    with pytest.raises(ValueError, match="multiple of the patches of the encoder"):
        resized_encoder(ours, (90, 64))


def test_a_wrapped_model_keeps_its_size_unless_it_is_asked_for():
    resnet = load_timm("test_resnet", pretrained=False)
    assert fitting_size(resnet, (40, 30)) == resnet.image_size
    assert resized_encoder(resnet, resnet.image_size) is resnet
    larger = resized_encoder(resnet, (2 * resnet.image_size[0], resnet.image_size[1]))
    assert larger.grid == (2 * resnet.grid[0], resnet.grid[1])
    vit = load_timm("test_vit", pretrained=False)
    assert resized_encoder(vit, (96, 64))(torch.rand(1, 3, 96, 64)).patches.shape[1] == 24
    with pytest.raises(ValueError, match="a multiple of the patches of timm:test_resnet"):
        resized_encoder(resnet, (resnet.image_size[0] + 1, resnet.image_size[1]))


def test_raw_pixels_of_patches():
    images = torch.rand(2, 3, 8, 12)
    found = pixel_patches(images, (2, 3))
    assert found.shape == (2, 6, 48)
    assert torch.equal(found[1, 4].view(4, 4, 3), images[1, :, 4:, 4:8].permute(1, 2, 0))
    assert pixel_patches(torch.rand(1, 3, 64, 64), (2, 2)).shape == (1, 4, 16 * 16 * 3), "large patches are shrunk"


def test_one_class_is_refused(tmp_path, masks):
    with pytest.raises(ValueError, match=r"two classes in train; got 1 in train"):
        pictures(write(tmp_path / "a.npz", np.zeros_like(masks)))


def test_a_part_without_any_class_is_refused(tmp_path, masks):
    masks[3::4] = 255
    with pytest.raises(ValueError, match=r"got 0 in test.*of 100% of the pixels.*set Segmentation.ignore"):
        pictures(write(tmp_path / "a.npz", masks))


def test_fewer_images(tmp_path):
    source = MaskedParts(**vars(open_masked(str(masked_folder(tmp_path / "set")), None, 255, images=4, test_images=2)))
    assert {part: len(dataset) for part, dataset in source.parts.items()} == {"train": 4, "test": 2, "val": 3}
    assert source.name_of(1) == "red"
    assert source.name_of(4) == "class 4"


def test_the_classes_that_occur_are_the_list_where_there_is_none(tmp_path, masks):
    masks[3::4][masks[3::4] == 2] = 9  # in test alone
    assert pictures(write(tmp_path / "a.npz", masks)).source.masks.names == {k: f"class {k}" for k in (0, 1, 2, 9)}


@pytest.mark.parametrize("wrong", [{"lrs": ()}, {"lrs": (0.0,)}, {"steps": 0}, {"batch_size": 0}])
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match=r"Segmentation\."):
        Segmentation("run", "data", **wrong)

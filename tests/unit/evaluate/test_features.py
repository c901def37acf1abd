import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pantomim.data.sources import open_source
from pantomim.data.stats import channel_stats
from pantomim.data.transforms import resized_crop
from pantomim.evaluate.features import check_features_path, extract, pixel_size, pixel_table, save_features
from pantomim.evaluate.label_free import LabelFree
from pantomim.formats.files import hash_weights
from pantomim.formats.timm import load_timm
from pantomim.formats.transform import Transform
from pantomim.nn.vit import EncoderConfig

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
BOX = torch.tensor([0, 0, 8, 8]).expand(20, 4)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), dtype=np.uint8)


@pytest.fixture
def data(tmp_path, images):
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(20) % 4)
    return open_source(str(tmp_path / "set.npz"), "all")


def build(**changes):
    sizes = {"image_size": (8, 8), "patch_size": 4, "width": 16, "depth": 2, "heads": 2, "mean": MEAN, "std": STD}
    torch.manual_seed(0)
    return EncoderConfig(**{**sizes, **changes}).build()


def test_features_are_those_of_the_encoder(data, images):
    encoder = build()
    table = extract(encoder, data, batch_size=7)
    with torch.no_grad():
        prefix, patches, _ = encoder.eval()(torch.from_numpy(images).float() / 255)
    torch.testing.assert_close(table.views["class"], prefix[:, 0])
    torch.testing.assert_close(table.views["mean"], patches.mean(dim=1))
    assert table.labels.tolist() == (np.arange(20) % 4).tolist()
    assert len(table) == len(table.names) == 20


@pytest.mark.parametrize("interpolation", [None, "bilinear"])
@pytest.mark.parametrize("held", [True, False], ids=["of an array", "of files"])
def test_images_are_resized_as_for_pictures(tmp_path, images, interpolation, held):
    encoder, images = build(image_size=(12, 12), interpolation=interpolation).eval(), images // 4 + 96
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in images]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number:02}.png")
    np.savez(tmp_path / "set.npz", images=images)
    dataset = open_source(str(tmp_path / "set.npz" if held else tmp_path), "all")
    table = extract(encoder, dataset)
    shown = Transform.of(encoder)(pictures)
    resized = resized_crop(torch.from_numpy(images) / 255, BOX, (12, 12), None, interpolation or "bicubic")
    assert (shown - resized).abs().max() < 0.01
    with torch.no_grad():
        expected = encoder(shown).patches.mean(dim=1)
    assert (table.views["mean"] - expected).abs().max() < 0.01 * expected.abs().max()


@pytest.mark.parametrize(("side", "largest"), [(224, 8), (448, 2), (1344, 1)])
def test_of_large_images_a_batch_holds_fewer(data, side, largest):
    encoder, sizes = build(image_size=(side, side), patch_size=112), []
    encoder.register_forward_hook(lambda module, given, output: sizes.append(len(given[0])))
    few = data.subset(np.arange(8))
    assert len(extract(encoder, few, batch_size=8)) == 8
    LabelFree("", "", chunk=8).figures(encoder, few)
    assert max(sizes) == largest


def test_the_encoder_is_frozen_even_if_handed_over_in_training(data):
    encoder = build(drop_path=0.9).train()
    before = hash_weights(encoder.state_dict())
    table = extract(encoder, data)
    assert encoder.training, "the mode is given back as it was"
    assert hash_weights(encoder.state_dict()) == before
    assert torch.equal(table.views["mean"], extract(encoder.eval(), data).views["mean"]), (
        "no dropped paths in training mode either"
    )


def test_an_encoder_that_changes_itself_is_found_out(data):
    encoder = build()

    def drift(module, arguments, output):
        module.norm.bias.data.add_(1)

    encoder.register_forward_hook(drift)
    with pytest.raises(AssertionError, match="frozen encoder has changed"):
        extract(encoder, data)


def test_the_same_twice(data):
    assert torch.equal(extract(build(), data).views["mean"], extract(build(), data).views["mean"])


def test_no_class_token_no_class_view(data):
    table = extract(build(class_token=False, registers=2), data)
    assert list(table.views) == ["mean"]


def test_wrapped_models(tmp_path):
    torch.manual_seed(0)
    encoder = load_timm("test_resnet", pretrained=False)
    pictures = np.random.default_rng(0).integers(0, 256, (4, 3, 24, 24), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=pictures)
    table = extract(encoder, open_source(str(tmp_path / "set.npz"), "all"))
    assert "class" not in table.views
    assert table.views["mean"].shape == (4, encoder.width)
    assert table.labels is None


def test_other_channels_are_refused_by_name(data):
    encoder = build(in_chans=7, mean=(0.0,) * 7, std=(1.0,) * 7)
    with pytest.raises(ValueError, match=r"an encoder of 7 and .*set\.npz of 3"):
        extract(encoder, data)


def test_pixels_are_standardised_by_channel(data):
    table = pixel_table(data, (8, 8), channel_stats(data))
    pixels = table.views["pixels"].view(20, 3, 64)
    torch.testing.assert_close(pixels.mean(dim=(0, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(pixels.std(dim=(0, 2), correction=0), torch.ones(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("size", "channels", "expected"),
    [((32, 32), 3, (32, 32)), ((28, 28), 1, (28, 28)), ((224, 224), 3, (32, 32)), ((64, 128), 12, (11, 23))],
)
def test_large_images_are_shrunk_in_the_pixel_reference(size, channels, expected):
    assert pixel_size(size, channels) == expected


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_saved_tables_read_back(data, tmp_path, suffix):
    table = extract(build(), data)
    path = tmp_path / f"features.{suffix}"
    save_features(table, path)
    if suffix == "npz":
        read = dict(np.load(path))
    else:
        import pyarrow.parquet

        columns = pyarrow.parquet.read_table(path).to_pydict()
        read = {name: np.array(values) for name, values in columns.items()}
    assert read.keys() == {"names", "labels", "label_names", "class", "mean"}
    assert read["label_names"].tolist() == [table.classes[label] for label in read["labels"]]
    assert read["names"].tolist() == list(table.names)
    np.testing.assert_array_equal(read["labels"], table.labels.numpy())
    np.testing.assert_allclose(read["class"], table.views["class"].numpy(), rtol=1e-6)
    np.testing.assert_allclose(read["mean"], table.views["mean"].numpy(), rtol=1e-6)


def test_without_pyarrow_the_extra_is_named_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    check_features_path(tmp_path / "features.npz")
    with pytest.raises(ValueError, match=r"pantomim\[parquet\]"):
        check_features_path(tmp_path / "features.parquet")


@pytest.mark.parametrize("name", ["features.csv", "features", "taken.npz", "file/features.npz"])
def test_a_path_is_checked_before_the_work(tmp_path, name):
    (tmp_path / "taken.npz").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"features\.out must"):
        check_features_path(tmp_path / name)


def test_a_good_path_passes(tmp_path):
    for name in ("features.npz", "new/features.parquet"):
        check_features_path(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == []

import io
import pickle
import sys
import types
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tifffile
import torch
from image_files import broken_folder, fill, png
from PIL import Image
from synthetic import write_synthetic

from pantomim.core.scales import scale_of
from pantomim.data.dataset import Facts
from pantomim.data.decoding import BrokenImageError
from pantomim.data.libraries import _torchvision_labels
from pantomim.data.sources import open_source, splits
from pantomim.data.stats import channel_stats
from pantomim.data.stores import FileStore, ZipStore

SHARED = Path(__file__).parents[3] / ".." / "shared" / "data"
with_shared = pytest.mark.skipif(not SHARED.exists(), reason="needs the image sets beside the repository")


def packed(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def class_files() -> dict[str, bytes]:
    names = [
        f"{split}/{c}/{k}.png" for split, n in (("train", 4), ("test", 2)) for c in ("cat", "dog") for k in range(n)
    ]
    return {name: png(number) for number, name in enumerate(names)}


def test_folder_with_splits_and_classes(tmp_path):
    files = {**class_files(), "notes.txt": b"x", "train/cat/readme.md": b"x", "train/dog/._0.png": b"x"}
    train = open_source(str(fill(tmp_path / "pets", files)))
    assert train.facts == Facts(8, 3, (8, 10), 8, "uint8", 2)
    assert (train.name, train.classes) == ("pets", ("cat", "dog"))
    assert train.left_out == {".txt": 1, ".md": 1, "hidden or of the system": 1}
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    assert train.names[0] == "train/cat/0.png"
    assert splits(str(tmp_path / "pets")) == ("train", "test")
    assert open_source(str(tmp_path / "pets"), "test").labels.tolist() == [0, 0, 1, 1]
    assert len(open_source(str(tmp_path / "pets"), "all")) == 12
    expected = np.asarray(Image.open(tmp_path / "pets/train/cat/3.png")).transpose(2, 0, 1)
    np.testing.assert_array_equal(train.read(3), expected)
    np.testing.assert_array_equal(train.array(1.0)[3], expected)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_reads_as_the_folder_it_was_made_from(tmp_path, method):
    folder = open_source(str(fill(tmp_path / "pets", class_files())))
    archive = open_source(str(packed(tmp_path / "pets.zip", class_files(), method)))
    assert archive.facts == folder.facts
    assert archive.names == folder.names
    assert archive.labels.tolist() == folder.labels.tolist()
    np.testing.assert_array_equal(archive.array(1.0), folder.array(1.0))
    inner = open_source(f"{tmp_path}/pets.zip/train/cat", "all")
    assert inner.names == ["0.png", "1.png", "2.png", "3.png"]
    assert inner.name == "cat"


def test_zip_is_read_by_many_threads_and_after_pickling(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    files = {f"{k}.png": png(k) for k in range(40)}
    dataset = open_source(str(packed(tmp_path / "a.zip", files)), "all")
    with ThreadPoolExecutor(8) as threads:
        images = list(threads.map(dataset.read, range(40)))
    again = pickle.loads(pickle.dumps(dataset))
    for index in range(40):
        np.testing.assert_array_equal(images[index], again.read(index))


def test_a_damaged_member_is_found_by_its_checksum(tmp_path):
    path = packed(tmp_path / "a.zip", {"0.png": png(0)}, zipfile.ZIP_STORED)
    with zipfile.ZipFile(path) as archive:
        store = ZipStore(path, archive.infolist(), archive.namelist())
    data = bytearray(path.read_bytes())
    data[60] ^= 255
    path.write_bytes(data)
    with pytest.raises(BrokenImageError, match="checksum"):
        store.decode(0)


def test_files_held_in_memory_read_the_same(tmp_path):
    files = {f"{k}.png": png(k, (8, 8 + k)) for k in range(6)}
    dataset = open_source(str(fill(tmp_path / "a", files)), "all")
    before = [dataset.read(index) for index in range(6)]
    assert not dataset.hold_encoded(memory_gib=1e-9)
    assert dataset.hold_encoded(memory_gib=1.0)
    for file in (tmp_path / "a").iterdir():
        file.unlink()
    for index in range(6):
        np.testing.assert_array_equal(dataset.read(index), before[index])


def test_a_source_without_splits_is_divided_once_and_for_all(tmp_path):
    spec = str(fill(tmp_path / "a", {f"{c}/{k}.png": png(k) for c in "ab" for k in range(10)}))
    train, test = open_source(spec), open_source(spec, "test")
    assert splits(spec) == ()
    assert (len(train), len(test)) == (16, 4)
    assert not set(train.names) & set(test.names)
    assert test.labels.tolist() == [0, 0, 1, 1]
    assert open_source(spec, "test").names == test.names
    assert len(open_source(spec, "all")) == 20
    with pytest.raises(ValueError, match=r"Source.split must be one that .* has; got 'val'. It has train, test"):
        open_source(spec, "val")


def test_unlabelled_folder(tmp_path):
    dataset = open_source(str(fill(tmp_path / "a", {f"x/y/{k}.png": png(k) for k in range(5)})))
    assert dataset.labels is None
    assert dataset.classes is None
    assert dataset.facts.num_classes is None


def test_npz_with_labels_and_splits(tmp_path):
    train = open_source(str(write_synthetic(tmp_path / "s.npz", 40, size=12, channels=4, dtype="int16")))
    assert train.facts == Facts(30, 4, (12, 12), 12, "int16", 3)
    assert train.scale == scale_of("int16")
    assert splits(str(tmp_path / "s.npz")) == ("train", "test")
    test = open_source(str(tmp_path / "s.npz"), "test")
    with np.load(tmp_path / "s.npz") as arrays:
        np.testing.assert_array_equal(test.array(1.0), arrays["images"][30:])
        np.testing.assert_array_equal(test.labels, arrays["labels"][30:])


@pytest.mark.parametrize("shape", [(6, 9, 8), (6, 1, 9, 8), (6, 9, 8, 1), (6, 3, 9, 8), (6, 9, 8, 3)])
def test_npz_of_every_axis_order(tmp_path, shape):
    np.savez(tmp_path / "a.npz", images=np.zeros(shape, dtype=np.float32))
    dataset = open_source(str(tmp_path / "a.npz"), "all")
    assert dataset.facts.size == (9, 8)
    assert dataset.read(0).shape == (3 if 3 in shape else 1, 9, 8)


def test_npz_labels_may_be_words_and_follow_train(tmp_path):
    arrays = {"images": np.zeros((4, 5, 5), np.uint8), "split": np.array(["train", "train", "test", "valid"])}
    np.savez(tmp_path / "a.npz", labels=np.array(["owl", "ant", "owl", "ant"]), **arrays)
    assert open_source(str(tmp_path / "a.npz"), "test").labels.tolist() == [1]
    assert open_source(str(tmp_path / "a.npz"), "val").classes == ("ant", "owl")
    np.savez(tmp_path / "b.npz", labels=np.array([3, 7, 5, 7]), **arrays)
    with pytest.raises(ValueError, match=r"Source.classes must be those of train; got 5"):
        open_source(str(tmp_path / "b.npz")).labelled()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((2, 4, 4))}, "Source.images must be an array of the .npz; got pictures"),
        ({"images": np.zeros((4, 4))}, "Source.images must have the shape"),
        ({"images": np.zeros((2, 4, 4), np.int64)}, "holds int64 numbers"),
        ({"images": np.full((2, 4, 4), np.nan)}, "NaN"),
        ({"images": np.zeros((2, 70, 80, 90))}, "no axis of at most 64 bands"),
        ({"images": np.zeros((2, 4, 4)), "labels": np.zeros(3, int)}, "Source.labels must have one value an image"),
        (
            {"images": np.zeros((2, 4, 4)), "split": np.array(["train", "dev"])},
            "must hold train, val and test; got dev",
        ),
    ],
)
def test_npz_of_the_wrong_kind_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path / "a.npz"))


def test_list_of_files_with_classes(tmp_path):
    fill(tmp_path, {f"pics/a {k}.png": png(k) for k in range(4)})
    (tmp_path / "l.txt").write_text(
        "# mine\npics/a 0.png\towl\npics/a 1.png ant\n\npics/a 2.png\towl\npics/a 3.png ant\n"
    )
    dataset = open_source(str(tmp_path / "l.txt"), "all")
    assert dataset.names == [f"pics/a {k}.png" for k in range(4)]
    assert dataset.classes == ("ant", "owl")
    assert dataset.labels.tolist() == [1, 0, 1, 0]
    (tmp_path / "l.txt").write_text("pics/a 0.png\npics/a 1.png\n")
    assert open_source(str(tmp_path / "l.txt"), "all").labels is None
    (tmp_path / "l.txt").write_text("pics/a 0.png\npics/a 1.png\towl\n")
    part = open_source(str(tmp_path / "l.txt"), "all")
    assert (part.labels.tolist(), part.labelled().names) == ([-1, 0], ["pics/a 1.png"])


def test_embedded_digits():
    train, test = open_source("mnist"), open_source("mnist", "test")
    assert train.facts == Facts(4000, 1, (28, 28), 28, "uint8", 10)
    assert np.bincount(test.labels).tolist() == [100] * 10
    assert train.array(1.0).max() == 255
    assert not {image.tobytes() for image in train.array(1.0)} & {image.tobytes() for image in test.array(1.0)}


def fake_cifar(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        batch = {"data": rng.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [0, 1, 2, 9]}
        (folder / name).write_bytes(pickle.dumps(batch))
    names = ["airplane", *"abcdefgh", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))


def test_torchvision_set_is_read_from_disk(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    fake_cifar(tmp_path)
    monkeypatch.setenv("PANTOMIM_DATA", str(tmp_path))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
    train, test = open_source("torchvision:CIFAR10"), open_source("torchvision:CIFAR10", "test")
    assert train.facts == Facts(20, 3, (32, 32), 32, "uint8", 10)
    assert (train.name, train.classes[0], train.classes[9]) == ("cifar10", "airplane", "truck")
    image, label = CIFAR10(tmp_path, train=False)[3]
    np.testing.assert_array_equal(test.read(3), np.asarray(image).transpose(2, 0, 1))
    assert test.labels[3] == label == 9


def test_torchvision_set_of_single_pictures(tmp_path, monkeypatch):
    fill(tmp_path / "eurosat/2750", {f"{c}/{c}_{k}.jpg": png(k) for c in ("Forest", "River") for k in range(5)})
    monkeypatch.setenv("PANTOMIM_DATA", str(tmp_path))
    train = open_source("torchvision:EuroSAT")
    assert train.facts == Facts(8, 3, (8, 10), 8, "uint8", 2)
    assert train.classes == ("Forest", "River")
    assert len(open_source("torchvision:EuroSAT", "test")) == 2


@pytest.mark.parametrize("attributes", [{"y": [3, 4]}, {"_samples": [("a.png", 3), ("b.png", 4)]}, {"_labels": [3, 4]}])
def test_labels_of_torchvision_sets_have_several_names(attributes):
    part = type("Part", (), {**attributes, "__len__": lambda self: 2})()
    assert list(_torchvision_labels(part)) == [3, 4]


def test_a_missing_torchvision_set_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PANTOMIM_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"CIFAR10.*download=True.*PANTOMIM_DATA"):
        open_source("torchvision:CIFAR10")
    with pytest.raises(ValueError, match=r"must name a class of torchvision.datasets"):
        open_source("torchvision:Nothing")


class Call:
    """Unpickled, it would write a file."""

    def __reduce__(self):
        return exec, ("open('executed', 'w')",)


@pytest.mark.parametrize("name", ["FakeData", "VisionDataset", "ImageNet", "ImageFolder", "DatasetFolder", "Kinetics"])
def test_classes_of_torchvision_that_are_no_sets_here(tmp_path, monkeypatch, name):
    torch.save({"a": Call()}, tmp_path / "meta.bin")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PANTOMIM_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=f"that torchvision finds in .*; got 'torchvision:{name}'") as error:
        open_source(f"torchvision:{name}")
    assert "weights_only" not in str(error.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("error", [RuntimeError("set trust_remote_code=True"), FileNotFoundError("nothing there")])
def test_hugging_face_runs_no_code(monkeypatch, error):
    asked = {}

    def load_dataset(name, **options):
        asked.update(options, name=name)
        raise error

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(ValueError, match=r"without running its code; got 'hf:some/set'") as refused:
        open_source("hf:some/set")
    assert asked == {"name": "some/set", "trust_remote_code": False}
    assert "trust_remote_code" not in str(refused.value)


def test_hugging_face_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install pantomim\[hf\]"):
        open_source("hf:cifar10")


class FakeHubPart(dict):
    """A split of a set of the hub: columns, and pictures by row."""

    def __init__(self, images, labels):
        super().__init__(image=images, fine=labels, coarse=[0] * len(images))
        self.features = {"fine": FakeLabel(), "coarse": FakeLabel(), "image": FakeImage()}

    def __len__(self):
        return len(self["image"])

    def __getitem__(self, key):
        return super().__getitem__(key) if isinstance(key, str) else {"image": self["image"][key]}

    def cast_column(self, column, feature):
        """Files in the place of pictures."""
        assert column == "image"
        assert feature.decode is False
        files = [io.BytesIO() for _ in self["image"]]
        for file, picture in zip(files, self["image"], strict=True):
            picture.save(file, "png")
        return FakeHubPart([{"bytes": file.getvalue(), "path": None} for file in files], self["fine"])


class FakeImage:
    def __init__(self, decode=True):
        self.decode = decode


class FakeLabel:
    names = ("owl", "ant")


def test_a_set_of_the_hub_follows_the_rules_of_names(monkeypatch, caplog):
    pictures = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in range(8)]
    parts = {
        "train_full": FakeHubPart(pictures[:4], [0, 1, None, 1]),
        "validation": FakeHubPart(pictures[4:6], [1, 0]),
        "unlabeled": FakeHubPart(pictures[6:7], [-1]),
        "other": FakeHubPart(pictures[7:], [0]),
    }
    hub = ModuleType("datasets")
    hub.Image, hub.ClassLabel, hub.load_dataset = FakeImage, FakeLabel, lambda name, **_: parts
    monkeypatch.setitem(sys.modules, "datasets", hub)
    with caplog.at_level("INFO"):
        train, val = open_source("hf:me/birds"), open_source("hf:me/birds", "val")
    assert (train.name, train.classes, train.labels.tolist()) == ("birds", ("owl", "ant"), [0, 1, -1, 1, -1])
    assert [int(train.read(index)[0, 0, 0]) for index in range(5)] == [0, 1, 2, 3, 6]
    assert val.labels.tolist() == [1, 0]
    assert "FakeLabel column fine is read, not coarse" in caplog.text
    assert "these parts are left out: other" in caplog.text


def test_gray_images_in_a_colour_set_are_replicated(tmp_path):
    spec = str(fill(tmp_path / "a", {"0.png": png(0), "1.png": png(1, channels=1), "2.png": png(2)}))
    dataset = open_source(spec, "all")
    image = dataset.read(1)
    assert dataset.channels == 3
    assert (image == image[:1]).all()


def test_a_set_of_several_kinds_is_refused_with_counts(tmp_path):
    fill(tmp_path, {"0.png": png(0), "1.png": png(1)})
    tifffile.imwrite(tmp_path / "2.tif", np.zeros((5, 8, 9), np.int16), photometric="minisblack")
    with pytest.raises(ValueError, match=r"got 2 of 3 x uint8, 1 of 5 x int16 in .*Name a sub folder"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("layout", ["contig", "separate"])
def test_multispectral_tiffs(tmp_path, layout):
    bands = np.random.default_rng(0).integers(-100, 9000, (3, 12, 16, 16)).astype(np.int16)
    for number, image in enumerate(bands):
        stored = image.transpose(1, 2, 0) if layout == "contig" else image
        tifffile.imwrite(tmp_path / f"{number}.tif", stored, photometric="minisblack", planarconfig=layout)
    dataset = open_source(str(tmp_path), "all")
    assert dataset.facts == Facts(3, 12, (16, 16), 16, "int16", None)
    np.testing.assert_array_equal(dataset.array(1.0), bands)


def test_a_broken_image_is_skipped_counted_and_named(tmp_path):
    dataset = open_source(broken_folder(tmp_path, 120, 1), "all")
    array = dataset.array(1.0)
    assert [broken.name for broken in dataset.broken] == ["0003.png"]
    assert dataset.broken[0].reason
    np.testing.assert_array_equal(array[3], array[4])  # the next healthy one stands in
    assert dataset.read_healthy(3)[0] == 4
    assert channel_stats(dataset).mean[0] == pytest.approx(np.delete(array, 3, 0)[:, 0].mean() / 255)


def test_more_than_one_percent_broken_stops_with_the_list(tmp_path):
    dataset = open_source(broken_folder(tmp_path, 150, 2), "all")
    with pytest.raises(ValueError, match=r"got 2 of 150 .*\n  0003.png: .*\n  0010.png: "):
        dataset.array(1.0)


def test_unreadable_headers_stop_at_opening(tmp_path):
    spec = str(fill(tmp_path, {"0.png": png(0), "1.png": b"", "2.jpg": b"no image"}))
    with pytest.raises(ValueError, match=r"got 2 of 3 .*\n  1.png: is an empty file\n  2.jpg: is no picture"):
        open_source(spec, "all")


def test_a_missing_file_of_a_list_is_named(tmp_path):
    fill(tmp_path, {"0.png": png(0)})
    (tmp_path / "l.txt").write_text("0.png\ngone.png\n")
    with pytest.raises(ValueError, match=r"gone.png: cannot be read: "):
        open_source(str(tmp_path / "l.txt"), "all")


def test_sources_without_images_are_refused(tmp_path):
    fill(tmp_path / "a", {"notes.txt": b"x"})
    with pytest.raises(ValueError, match=r"Source.spec must hold images; got .* with none, and 1 left out: 1 .txt"):
        open_source(str(tmp_path / "a"))
    packed(tmp_path / "a.zip", {"notes.md": b"x"})
    with pytest.raises(ValueError, match=r"Source.spec must hold images"):
        open_source(str(tmp_path / "a.zip"))
    (tmp_path / "b.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"Source.spec must be a readable zip"):
        open_source(str(tmp_path / "b.zip"))
    with pytest.raises(ValueError, match=r"Source.spec must be a folder.*Check the path"):
        open_source(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("member", [b"pickled words", b"\x93NUMPY\x01\x00\x10\x00broken"])
def test_a_damaged_npz_is_refused_without_advice_to_load_it_unsafely(tmp_path, member):
    np.savez(tmp_path / "objects.npz", images=np.array([{"a": 1}], dtype=object))
    packed(tmp_path / "damaged.npz", {"images.npy": member})
    (tmp_path / "bare.npz").write_bytes(member)
    for name in ("objects", "damaged", "bare"):
        with pytest.raises(ValueError, match=rf"Source.spec must be a readable .npz.*; got .*{name}.npz") as refused:
            open_source(str(tmp_path / f"{name}.npz"))
        assert "allow_pickle" not in str(refused.value)
        assert "unpickle" not in str(refused.value)


def test_an_npy_named_npz_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 4, 4), np.uint8))
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"Source.spec must be a readable .npz"):
        open_source(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("spec", ["", " ", "\t"])
def test_a_blank_name_is_not_the_current_folder(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(fill(tmp_path, {"0.png": png(0), "1.png": png(1)}))
    with pytest.raises(ValueError, match=r"Source.spec must name a source; got"):
        open_source(spec, "all")


def test_images_of_one_pixel_are_read(tmp_path):
    spec = str(fill(tmp_path, {f"{k}.png": png(k, (1, 1)) for k in range(3)}))
    assert open_source(spec, "all").facts == Facts(3, 3, (1, 1), 1, "uint8", None)


def test_sizes_that_differ_are_not_one_array(tmp_path):
    dataset = open_source(str(fill(tmp_path, {f"{k}.png": png(k, (8, 8 + k)) for k in range(3)})), "all")
    assert dataset.facts.size is None
    assert dataset.array(1.0) is None


def test_a_set_that_does_not_fit_is_not_one_array(tmp_path):
    dataset = open_source(str(fill(tmp_path, {f"{k}.png": png(k) for k in range(3)})), "all")
    assert dataset.array(memory_gib=1e-9) is None
    assert dataset.array(memory_gib=1.0) is not None


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_stats_are_those_of_all_pixels(tmp_path, dtype):
    dataset = open_source(str(write_synthetic(tmp_path / "a.npz", 30, dtype=dtype, split=False)), "all")
    stats = channel_stats(dataset)
    values = dataset.array(1.0).astype(np.float64) / dataset.scale.divisor
    np.testing.assert_allclose(stats.mean, values.mean(axis=(0, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(stats.std, values.std(axis=(0, 2, 3)), rtol=1e-9)


def test_a_constant_channel_has_deviation_one(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.full((3, 2, 4, 4), 51, np.uint8))
    stats = channel_stats(open_source(str(tmp_path / "a.npz"), "all"))
    assert stats.mean == pytest.approx((0.2, 0.2))
    assert stats.std == (1.0, 1.0)


def test_a_missing_file_is_a_broken_image(tmp_path):
    with pytest.raises(BrokenImageError, match=r"cannot be read"):
        FileStore(tmp_path, ["gone.png"]).decode(0)


@with_shared
def test_shared_multispectral_sources(tmp_path):
    water = open_source(str(SHARED / "water7_ms_64.npz"))
    assert water.facts == Facts(204, 7, (64, 64), 64, "int16", None)
    with pytest.raises(ValueError, match="1 of 1 x int16, 8 of 1 x uint8, 8 of 12 x int16, 1 of 13 x int16"):
        open_source(str(SHARED / "multispectral_tif_samples.zip"))
    chips = open_source(str(SHARED / "multispectral_tif_samples.zip/water12/images"), "all")
    assert chips.facts == Facts(8, 12, (128, 128), 128, "int16", None)
    with zipfile.ZipFile(SHARED / "multispectral_tif_samples.zip") as archive:
        archive.extract("sen1floods11/Spain_7370579_S2Hand.tif", tmp_path)
    bands_first = open_source(str(tmp_path), "all")
    assert bands_first.facts == Facts(1, 13, (512, 512), 512, "int16", None)
    assert bands_first.read(0)[1:4].mean() > 200  # reflectances x 10000 of land and water


@with_shared
def test_shared_zip_of_photos_names_the_folder_to_take():
    with pytest.raises(ValueError, match="splits in images, masks, masks12"):
        open_source(str(SHARED / "ccp_seg_192.zip"))
    assert len(open_source(str(SHARED / "ccp_seg_192.zip/images"), "val")) == 100

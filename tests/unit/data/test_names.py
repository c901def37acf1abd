"""The rules over names: folders, zips and lists of the same files are the same source."""

import logging
import os
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from image_files import fill, png

from pantomim.cli import main
from pantomim.data.dataset import Contents
from pantomim.data.names import name_splits, readable
from pantomim.data.sources import open_source, read_contents, splits

SYSTEM = (".ipynb_checkpoints/0.png", "@eaDir/a.png", "__MACOSX/._0.png", "lost+found/1.png", "Thumbs.db", ".DS_Store")


def meaning(contents: Contents, below: str = "") -> set[tuple[str, str, str]]:
    """Every image, its split and its class."""
    names, classes = contents.store.names, contents.classes or ()
    labels = np.full(len(names), -1) if contents.labels is None else contents.labels
    splits = {row: split for split, rows in contents.splits.items() for row in rows.tolist()}
    return {
        (name.removeprefix(below), splits.get(row, ""), classes[label] if label >= 0 else "")
        for row, (name, label) in enumerate(zip(names, labels.tolist(), strict=True))
    }


def tree(*folders: str, each: int = 2) -> list[str]:
    return [f"{folder}/{number}.png".lstrip("/") for folder in folders for number in range(each)]


def listed(*names: str) -> Contents:
    return Contents.arranged("SRC", "SRC", names, lambda rows, used: type("Store", (), {"names": used})())


def zipped(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return path


def drawn(rng: np.random.Generator) -> list[str]:
    """A random tree: with or without splits, wrappers, stray images, classes of many scripts and of numbers."""
    words = ["K\u00f6ln", "caf\u00e9", "\u732b", "a b", "zz", "10", "2", "1"]
    classes = rng.choice(words, rng.integers(1, 5), replace=False).tolist()
    splits = [[""], ["train/", "test/"], ["Training/", "validation/"], ["train2017/", "val2017/", "unlabeled2017/"]]
    chosen = splits[rng.integers(len(splits))]
    names = [f"{split}{label}/{number}.png" for split in chosen for label in classes for number in range(3)]
    names += [f"{chosen[0]}stray.png"] * int(rng.integers(2))
    return [f"{rng.choice(['', 'wrap/'])}{name}" for name in names] if rng.integers(2) else names


@pytest.mark.parametrize("seed", range(60))
def test_order_separators_unicode_and_system_files_change_nothing(seed):
    rng = np.random.default_rng(seed)
    names = drawn(rng)
    ours = meaning(listed(*names))
    parents = sorted({name.rpartition("/")[0] for name in names})
    other = [unicodedata.normalize(str(rng.choice(["NFC", "NFD"])), name) for name in names]
    other += [f"{rng.choice(parents)}/{rng.choice(SYSTEM)}".lstrip("/") for _ in range(rng.integers(6))]
    other = [name.replace("/", str(rng.choice(["/", "\\", "//", "/./"]))) for name in rng.permutation(other).tolist()]
    assert meaning(listed(*other)) == ours
    assert [readable(readable(name)) for name in other] == [readable(name) for name in other]


@pytest.mark.parametrize("seed", range(8))
def test_a_folder_a_zip_and_a_list_of_the_same_files_are_the_same(tmp_path, seed):
    names = [*dict.fromkeys(drawn(np.random.default_rng(seed)))]
    extra = [f"{folder}/{name}" for folder in {name.rpartition("/")[0] or "x" for name in names} for name in SYSTEM]
    folder = read_contents(str(fill(tmp_path / "set", dict.fromkeys([*names, *extra, "read.me"], b"x"))))
    archive = read_contents(str(zipped(tmp_path / "set.zip", [*extra, *names, "read.me"])))
    (tmp_path / "set.txt").write_text("".join(f"set/{name}\n" for name in [*names, *extra] if ".png" in name))
    assert meaning(folder) == meaning(archive)
    assert folder.left_out == archive.left_out
    assert meaning(read_contents(str(tmp_path / "set.txt")), "set/") == meaning(folder)


@pytest.mark.parametrize(
    ("names", "splits", "classes"),
    [
        (tree("training_set/a", "training_set/b", "test_set/a"), {"train": 4, "test": 2}, ("a", "b")),
        (tree("seg_train/seg_train/a", "seg_train/seg_train/b", "seg_test/seg_test/a"), {"train": 4, "test": 2}, "ab"),
        (tree("trainval2007", "test2007"), {"train": 2, "test": 2}, None),
        (tree("TrainImages", "ValImages", "extra"), {"train": 4, "val": 2}, None),
        (tree("train", "val", "test2017"), {"train": 2, "val": 2, "test": 2}, None),
        (tree("train/a", "train/b", "test/a", "unlabeled"), {"train": 6, "test": 2}, ("a", "b")),
        (tree("train/a", "train/b"), {}, ("a", "b")),
        (tree("train_station", "bus", "test_tube"), {"train": 2, "test": 2}, None),
        (tree("train_station", "test_tube", *"abcde"), {}, (*"abcde", "test_tube", "train_station")),
        (tree("bus", "car", "train"), {}, ("bus", "car", "train")),
        (tree("0", "1", "2", "10"), {}, ("0", "1", "2", "10")),
        (tree("a", "b", "unlabelled"), {}, ("a", "b")),
        ([*tree("a", "b"), "stray.png"], {}, ("a", "b")),
    ],
)
def test_what_folders_mean(names, splits, classes):
    found = listed(*names)
    assert {split: len(rows) for split, rows in found.splits.items() if len(found.splits) > 1} == splits
    assert found.classes == (classes if classes is None else tuple(classes))


@pytest.mark.parametrize("names", [tree("cats", "dogs", "test"), tree("training", "test_x", *"abcd")])
def test_what_looks_like_splits_and_is_none_is_told(names, caplog):
    assert listed(*names).splits == {}
    assert "named like a split and is not read as one" in caplog.text


def test_names_of_splits():
    assert name_splits(["train", "dev"]) == {"train": "train"}
    assert name_splits(["test_drive"]) == {}
    assert name_splits(["imagesTr", "imagesTs"]) == {"imagesTr": "train", "imagesTs": "test"}
    assert name_splits(["DS_train_2", "DS_eval_2"]) == {"DS_train_2": "train", "DS_eval_2": "val"}


@pytest.mark.parametrize("links", [{"self": "."}, {"a/up": "..", "b/up": ".."}, {"c": "a"}, {"a/9.png": "../b/0.png"}])
def test_each_real_file_is_read_once(tmp_path, links):
    root = fill(tmp_path / "set", dict.fromkeys(tree("a", "b"), b"x"))
    for link, target in links.items():
        (root / link).symlink_to(target)
    found = read_contents(str(root))
    assert sorted(found.store.names) == tree("a", "b")
    assert found.left_out.total() == len(links)


def test_splits_made_of_links_are_kept_and_foreign_folders_followed(tmp_path):
    fill(tmp_path / "set", dict.fromkeys(tree("all"), b"x"))
    fill(tmp_path / "store", dict.fromkeys(tree("x", "y"), b"x"))
    for number, split in enumerate(("train", "test")):
        (tmp_path / "set" / split).mkdir()
        (tmp_path / "set" / split / "0.png").symlink_to(f"../all/{number}.png")
    (tmp_path / "set/train/more").symlink_to(tmp_path / "store/x")
    found = read_contents(str(tmp_path / "set"))
    assert {split: len(rows) for split, rows in found.splits.items()} == {"train": 3, "test": 1}


def test_only_regular_files_are_opened(tmp_path):
    root = fill(tmp_path / "set", dict.fromkeys(tree("a", "b"), png(0)))
    os.mkfifo(root / "a/9.png")
    (root / "b/9.png").symlink_to("nowhere.png")
    assert read_contents(str(root)).left_out == {"no regular file": 2}
    (tmp_path / "l.txt").write_text("set/a/9.png\nset/a/0.png\n/dev/zero\n")
    with pytest.raises(ValueError, match=r"a/9.png: is no regular file\n  /dev/zero: is no regular file"):
        open_source(str(tmp_path / "l.txt"), "all")


@pytest.mark.parametrize(
    "own", [("m/.pantomim", "m/a/0.png"), ("run/config.yaml", "run/environment.json", "run/x.png"), ("p.html", "p.png")]
)
def test_what_we_wrote_is_no_data(tmp_path, own):
    files = dict.fromkeys([*tree("a", "b"), *own], b"x")
    for source in (fill(tmp_path / "set", files), zipped(tmp_path / "set.zip", list(files))):
        assert read_contents(str(source)).store.names == tree("a", "b")
    whole = read_contents(str(tmp_path / "set" / own[0].rpartition("/")[0]))
    assert whole.store.names, "who names the folder itself wants it"


@pytest.mark.parametrize(
    ("text", "labels", "splits"),
    [
        ("\ufeffa/0.png\tx\na/1.png\ty\n", ["x", "y"], {}),
        ("a/0.png,x\na/1.png,y", ["x", "y"], {}),
        ("a\\0.png;x\r\na\\1.png;y\r\n", ["x", "y"], {}),
        ("a/0.png -1\na/1.png y\n", ["", "y"], {}),
        ("a/0.png,x\na/1.png\n", ["x", ""], {}),
        ("id,file,label,split\n7,a/0.png,x,train\n8,a/1.png,,test\n", ["x", ""], {"train": [0], "test": [1]}),
        ('species,path\n"x, y",a/0.png\nz,a/1.png\n', ["x, y", "z"], {}),
        ("filename\na/0.png\na/1.png\n", ["", ""], {}),
        ("label\tpath\n\ta/0.png\ny\ta/1.png\n", ["", "y"], {}),
        ("path,split\na/0.png,train\na/1.png,test\n", ["", ""], {"train": [0], "test": [1]}),
        ("mask,image,label,class\nm/0.png,a/0.png,0,x\nm/1.png,a/1.png,1,y\n", ["0", "1"], {}),
    ],
)
def test_lists_of_many_programs(tmp_path, text, labels, splits):
    fill(tmp_path, dict.fromkeys(tree("a"), png(0)))
    (tmp_path / "l.csv").write_bytes(text.encode())
    found = read_contents(str(tmp_path / "l.csv"))
    assert list(found.store.names) == tree("a")
    assert [label for _, _, label in sorted(meaning(found))] == labels
    assert {split: rows.tolist() for split, rows in found.splits.items()} == splits
    assert [size & 0xFFFF for size in found.store.sizes([0, 1])] == [len(png(0))] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,class\na/0.png,0,x\na/1.png,0,y\n", "one column of labels; got label and class, which differ"),
        ("path,split,set\na/0.png,train,train\na/1.png,train,test\n", "one column of splits; got split and set"),
        ("path,label,Label\na/0.png,0,x\n", "a title once; got label twice"),
    ],
)
def test_a_list_of_two_meanings_is_refused(tmp_path, text, message):
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(ValueError, match=f"Source.spec must have {message}"):
        read_contents(str(tmp_path / "l.csv"))


def test_a_title_tells_images_without_an_ending(tmp_path):
    fill(tmp_path, {"a/0": png(0), "a/1": png(1)})
    (tmp_path / "l.csv").write_text("path,label\na/0,x\na/1,y\n")
    found = read_contents(str(tmp_path / "l.csv"))
    assert (list(found.store.names), found.classes) == (["a/0", "a/1"], ("x", "y"))


def test_a_list_may_lead_out_of_its_folder_with_windows_separators(tmp_path):
    root = fill(tmp_path, {"a/0.png": png(0), "lists/l.txt": b"..\\a\\0.png\tx\n"})
    found = read_contents(str(root / "lists/l.txt"))
    assert (found.store.names, found.classes) == (["../a/0.png"], ("x",))
    assert found.store.read(0) == png(0)


@pytest.mark.parametrize("data", ["a.png\n".encode("utf-16"), b"caf\xe9.png\n", b"a.png\0\n"])
def test_lists_in_other_encodings_are_named(tmp_path, data):
    (tmp_path / "l.txt").write_bytes(data)
    with pytest.raises(ValueError, match=r"must be a list in UTF-8; got .*l.txt"):
        read_contents(str(tmp_path / "l.txt"))


def test_a_list_finds_files_in_another_form_of_unicode(tmp_path):
    name = unicodedata.normalize("NFD", "K\u00f6ln/\u00e9.png")
    fill(tmp_path, {name: png(0)})
    (tmp_path / "l.txt").write_text("K\u00f6ln\\\u00e9.png\n")
    assert open_source(str(tmp_path / "l.txt"), "all").read(0).shape == (3, 8, 10)


def test_a_zip_has_the_last_member_of_a_name_and_names_of_a_mac(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.png", png(0))
        archive.writestr("1.png", png(1))
    path.write_bytes(path.read_bytes().replace(b"1.png", b"0.png"))
    assert read_contents(str(path)).left_out == {"of a name that comes twice": 1}
    np.testing.assert_array_equal(
        open_source(str(path), "all").read(0), open_source(str(fill(tmp_path / "x", {"0.png": png(1)})), "all").read(0)
    )
    name = "K\u00f6ln.png".encode()
    data = zipped(tmp_path / "b.zip", ["K__ln.png"]).read_bytes().replace(b"K__ln.png", name)
    (tmp_path / "b.zip").write_bytes(data)
    assert list(read_contents(str(tmp_path / "b.zip")).store.names) == ["K\u00f6ln.png"]


def test_names_that_are_no_utf8_can_be_written(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/\xff.png", "wb") as file:
        file.write(png(0))
    dataset = open_source(str(tmp_path), "all")
    assert (dataset.names, dataset.read(0).shape) == (["caf%E9/%FF.png"], (3, 8, 10))
    with pytest.raises(ValueError, match=r"Source.spec must be UTF-8"):
        read_contents(os.fsdecode(folder))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([3, -1, 7, -1], ["3", "", "7", ""]),
        ([0.0, np.nan, 1.0, 1.0], ["0.0", "", "1.0", "1.0"]),
        ([b"cat", b"", b"dog", b"None"], ["cat", "", "dog", ""]),
    ],
)
def test_no_label_in_an_npz(tmp_path, labels, expected):
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 5, 5), np.uint8), labels=np.array(labels))
    found = read_contents(str(tmp_path / "a.npz"))
    assert [label for _, _, label in sorted(meaning(found))] == expected
    assert len(open_source(str(tmp_path / "a.npz"), "all").labelled()) == 4 - expected.count("")
    train, test = (open_source(str(tmp_path / "a.npz"), split).labels for split in ("train", "all"))
    assert (train < 0).sum() == (test < 0).sum(), "images without a label are no test images of a source without splits"


NUMBERS = np.arange(6, dtype=np.uint8)[:, None, None].repeat(5, 1).repeat(5, 2)


@pytest.mark.parametrize(
    ("images", "labels"), [("{}_images", "{}_labels"), ("x_{}", "y_{}")], ids=["MedMNIST", "Keras"]
)
def test_an_npz_with_arrays_of_each_split(tmp_path, images, labels):
    rows = {"test": [4, 5], "train": [0, 1, 2], "val": [3]}
    arrays = {images.format(split): NUMBERS[part] for split, part in rows.items()}
    arrays |= {labels.format(split): NUMBERS[part, 0, :1] % 3 for split, part in rows.items()}  # (n, 1) as in both
    np.savez(tmp_path / "a.npz", **arrays)
    for split, part in rows.items():
        dataset = open_source(str(tmp_path / "a.npz"), split)
        np.testing.assert_array_equal([dataset.read(row)[0, 0, 0] for row in range(len(dataset))], part)
        np.testing.assert_array_equal(dataset.labels, np.array(part) % 3)
    np.savez(tmp_path / "b.npz", **{images.format("train"): NUMBERS})
    assert (splits(str(tmp_path / "b.npz")), len(open_source(str(tmp_path / "b.npz")))) == ((), 5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": NUMBERS, "x_train": NUMBERS}, "their names in one way; got images, x_train"),
        (
            {"x_train": NUMBERS, "x_test": NUMBERS[:, 1:]},
            r"one shape and number type; got x_train \(6, 5, 5\) uint8",
        ),
        ({"x_train": NUMBERS, "y_train": np.zeros(5)}, r"one value an image; got shape \(5,\) for 6 images"),
        ({"x": NUMBERS, "y_train": np.zeros(5)}, "an array of the .npz; got y_train, x in"),
    ],
)
def test_an_npz_of_unclear_names_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=f"Source.*must (be|have) {message}"):
        read_contents(str(tmp_path / "a.npz"))


def test_several_labels_an_image_are_no_classes(tmp_path, caplog):
    np.savez(tmp_path / "a.npz", train_images=NUMBERS, train_labels=np.eye(6, dtype=np.uint8))
    with caplog.at_level(logging.WARNING):
        assert read_contents(str(tmp_path / "a.npz")).classes is None
    assert "train_labels has 6 values an image, and a class is one" in caplog.text


def test_one_image_is_no_stack_of_gray_ones(tmp_path, caplog):
    np.savez(tmp_path / "a.npz", images=np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match=r"got \(32, 32, 3\) \(one image\?\)"):
        read_contents(str(tmp_path / "a.npz"))
    np.savez(tmp_path / "b.npz", images=np.zeros((3, 32, 32), np.uint8))
    with caplog.at_level(logging.INFO):
        assert len(read_contents(str(tmp_path / "b.npz")).store) == 3
    assert "is read as 3 gray image(s)" in caplog.text


def test_the_command_line_tells_what_was_left_out(tmp_path, capsys):
    files = {**dict.fromkeys(tree("a", "b", each=5), png(0)), "x.heic": b"x", "y.HEIC": b"x"}
    main(["stats", str(fill(tmp_path / "set", files))])
    err = capsys.readouterr().err
    assert "2 files left out: 2 .heic (pip install 'pantomim[heic]')" in err.replace("\n", " ")
    assert err.count("left out") == err.count("held back") == 1


@pytest.mark.parametrize("name", ["None", "nan", "-1"])
def test_a_folder_that_is_named_like_no_label_is_a_class(tmp_path, name):
    """None is what "no defect" is called."""
    found = read_contents(str(fill(tmp_path / "set", dict.fromkeys(tree(name, "edge"), png(0)))))
    assert found.classes == tuple(sorted([name, "edge"]))
    assert set(found.labels.tolist()) == {0, 1}

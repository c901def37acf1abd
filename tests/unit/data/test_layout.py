import numpy as np
import pytest

from pantomim.data.layout import divide, read_layout


def layout(*names: str):
    return read_layout(sorted(names), "SRC")


def chosen(found, names, split):
    return [sorted(names)[row] for row in found.splits[split]]


def test_classes_are_folders_right_below_the_root():
    found = layout("cat/1.jpg", "cat/2.jpg", "dog/1.jpg")
    assert found.splits == {}
    assert found.classes == ("cat", "dog")
    assert found.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "names",
    [
        ("1.jpg", "2.jpg"),
        ("cat/1.jpg", "cat/2.jpg"),  # one folder only
        ("cat/1.jpg", "dog/2.jpg", "3.jpg", "4.jpg"),  # most lie in folders of classes, or there are none
        ("cat/1.jpg", "dog/a/2.jpg"),
    ],
)
def test_other_folders_are_no_classes(names):
    assert layout(*names).labels is None


def test_a_wrapping_folder_is_looked_through():
    assert layout("set/v1/cat/1.jpg", "set/v1/dog/2.jpg").classes == ("cat", "dog")


@pytest.mark.parametrize("prefix", ["", "images/", "set/images/"])
def test_splits_at_the_top_and_one_level_down(prefix):
    names = [
        f"{prefix}{split}/{c}/{k}.jpg" for split in ("train", "valid", "test") for c in ("a", "b") for k in range(2)
    ]
    found = layout(*names)
    assert list(found.splits) == ["train", "val", "test"]
    assert chosen(found, names, "val") == [name for name in names if "valid" in name]
    assert found.classes == ("a", "b")
    assert found.labels[found.splits["test"]].tolist() == [0, 0, 1, 1]


def test_images_beside_the_splits_are_left_out_and_counted():
    found = layout("train/1.jpg", "test/2.jpg", "instances/train/1.png", "instances/test/2.png")
    assert {split: len(rows) for split, rows in found.splits.items()} == {"train": 1, "test": 1}
    assert found.left_out == {"outside the splits": 2}


def test_several_folders_with_splits_are_refused():
    with pytest.raises(ValueError, match=r"SRC with splits in images, masks.*SRC/images"):
        layout("images/train/1.jpg", "images/test/2.jpg", "masks/train/1.png", "masks/test/2.png")


def test_a_class_may_be_called_train():
    found = layout("bus/1.jpg", "car/1.jpg", "train/1.jpg")
    assert found.splits == {}
    assert found.classes == ("bus", "car", "train")


def test_class_ids_come_from_train():
    found = layout("train/b/1.jpg", "train/c/1.jpg", "test/c/1.jpg")
    assert found.classes == ("b", "c")
    assert found.labels[found.splits["test"]].tolist() == [1]
    unknown = layout("train/b/1.jpg", "train/c/1.jpg", "test/a/1.jpg")
    assert "got a in SRC, unknown to train" in unknown.problem
    assert unknown.labels.tolist() == [-1, 0, 1]


def test_a_test_part_without_class_folders_has_no_labels():
    found = layout("train/b/1.jpg", "train/c/1.jpg", "test/1.jpg")
    assert found.labels.tolist() == [-1, 0, 1]


def test_division_is_fixed_disjoint_complete_and_stratified():
    labels = np.repeat([0, 1, 2], [50, 10, 2])
    parts = divide(62, labels, seed=0)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(62))
    assert np.bincount(labels[parts["test"]]).tolist() == [10, 2, 1]
    np.testing.assert_array_equal(parts["test"], divide(62, labels, seed=0)["test"])
    assert parts["test"].tolist() != divide(62, labels, seed=1)["test"].tolist()
    assert len(divide(10, None, seed=0)["test"]) == 2
    assert len(divide(1, None, seed=0)["train"]) == 1

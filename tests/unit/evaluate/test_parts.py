import pytest
import torch

from pantomim.evaluate.features import FeatureTable
from pantomim.evaluate.parts import make_parts
from pantomim.evaluate.scores import Outcome, best_view, top1, top1_per_class


def table(labels):
    labels = None if labels is None else torch.tensor(labels)
    count = 4 if labels is None else len(labels)
    return FeatureTable({"mean": torch.arange(count).float().view(-1, 1)}, labels, tuple(map(str, range(count))))


def test_a_fifth_of_train_is_held_out_of_every_class():
    train = table([0] * 10 + [1] * 20)
    parts = make_parts(train, None, table([0, 1]), seed=0)
    assert parts.validation.labels.bincount().tolist() == [2, 4]
    assert parts.fit.labels.bincount().tolist() == [8, 16]
    assert not set(parts.fit.names) & set(parts.validation.names)
    assert parts.train.names == train.names


def test_a_validation_part_of_its_own_is_used():
    parts = make_parts(table([0, 0, 1, 1]), table([1, 0]), table([0]), seed=0)
    assert parts.fit is parts.train
    assert parts.validation.labels.tolist() == [1, 0]


def test_class_ids_are_counted_from_zero():
    parts = make_parts(table([3, 3, 70, 70]), None, table([70, 3]), seed=0)
    assert parts.num_classes == 2
    assert parts.train.labels.tolist() == [0, 0, 1, 1]
    assert parts.test.labels.tolist() == [1, 0]


def test_missing_labels_say_how_to_give_them():
    with pytest.raises(ValueError, match=r"must have labels; got none for test\. .*one folder a class"):
        make_parts(table([0, 1]), None, table(None), seed=0)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match=r"at least two classes in train; got 1"):
        make_parts(table([5, 5, 5]), None, table([5]), seed=0)


def test_a_class_unknown_to_train_is_refused_by_name():
    with pytest.raises(ValueError, match=r"got class 2, 9 in 3 images of test"):
        make_parts(table([0, 0, 1, 1]), None, table([0, 2, 9, 9]), seed=0)


def test_one_image_a_class_leaves_nothing_to_choose_by():
    with pytest.raises(ValueError, match=r"at least two images of some class"):
        make_parts(table([0, 1, 2]), None, table([0]), seed=0)


def test_per_class_accuracy_weighs_classes_alike():
    labels, predictions = torch.tensor([0] * 9 + [2]), torch.zeros(10, dtype=torch.long)
    assert top1(predictions, labels) == pytest.approx(0.9)
    assert top1_per_class(predictions, labels) == pytest.approx(0.5)


def test_the_headline_is_chosen_by_validation_not_by_test():
    labels = torch.tensor([0, 1])
    outcomes = {
        "class": Outcome(0.9, {"k": 5}, torch.tensor([0, 0])),
        "mean": Outcome(0.8, {"k": 5}, torch.tensor([0, 1])),
    }
    result = best_view(outcomes, labels)
    assert result["view"] == "class"
    assert (result["top1"], result["top1_class"], result["top1_mean"]) == (0.5, 0.5, 1.0)

import pytest
import torch

from pantomim.evaluate.features import FeatureTable
from pantomim.evaluate.parts import Outcome, accuracy, best_view, make_parts


def table(labels):
    count = len(labels)
    features = torch.arange(count).float().view(-1, 1)
    return FeatureTable({"mean": features}, torch.tensor(labels), tuple(map(str, range(count))))


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


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([5, 5, 5], [5], "at least two classes in train; got 1"),
        ([0, 0, 1, 1], [0, 2, 9, 9], "got class 2, 9 in 3 images of test"),
        ([0, 1, 2], [0], "at least two images of some class"),
    ],
)
def test_labels_that_nothing_can_be_learned_from_are_refused(train, test, message):
    with pytest.raises(ValueError, match=message):
        make_parts(table(train), None, table(test), seed=0)


def test_per_class_accuracy_weighs_classes_alike():
    labels, predictions = torch.tensor([0] * 9 + [2]), torch.zeros(10, dtype=torch.long)
    assert accuracy(predictions, labels) == pytest.approx({"top1": 0.9, "top1_per_class": 0.5})


def test_the_headline_is_chosen_by_validation_not_by_test():
    labels = torch.tensor([0, 1])
    outcomes = {
        "class": Outcome(0.9, {"k": 5}, torch.tensor([0, 0])),
        "mean": Outcome(0.8, {"k": 5}, torch.tensor([0, 1])),
    }
    result = best_view(outcomes, labels)
    assert result["view"] == "class"
    assert (result["top1"], result["top1_class"], result["top1_mean"]) == (0.5, 0.5, 1.0)

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from pantomim.evaluate.features import FeatureTable
from pantomim.evaluate.knn import knn, neighbour_votes
from pantomim.evaluate.parts import make_parts


def table(features, labels, name="mean"):
    return FeatureTable({name: features}, labels, tuple(str(index) for index in range(len(labels))))


def draws(seed=0, num_bank=60, num_queries=25, num_classes=4, width=8):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, width, generator=generator)
    labels = torch.randint(num_classes, (num_bank + num_queries,), generator=generator)
    features = centres[labels] + torch.randn(num_bank + num_queries, width, generator=generator)
    return features[:num_bank], labels[:num_bank], features[num_bank:], labels[num_bank:]


@pytest.mark.parametrize("chunk", [7, 1024])
def test_votes_by_the_formula_in_numpy(chunk):
    bank, labels, queries, _ = draws()
    ours = neighbour_votes(bank, labels, queries, 4, (3, 10), chunk=chunk)
    a, b = bank.double().numpy(), queries.double().numpy()
    similarity = (b / np.linalg.norm(b, axis=1, keepdims=True)) @ (a / np.linalg.norm(a, axis=1, keepdims=True)).T
    for k, predictions in ours.items():
        for row, prediction in zip(similarity, predictions, strict=True):
            nearest = np.argsort(-row)[:k]
            votes = np.zeros(4)
            np.add.at(votes, labels.numpy()[nearest], np.exp(row[nearest] / 0.07))
            assert votes.argmax() == prediction


def test_one_neighbour_as_scikit_learn():
    bank, labels, queries, _ = draws(seed=1)
    theirs = KNeighborsClassifier(1, metric="cosine").fit(bank.numpy(), labels.numpy()).predict(queries.numpy())
    assert neighbour_votes(bank, labels, queries, 4, (1,))[1].tolist() == theirs.tolist()


def test_neighbours_are_limited_by_the_bank():
    bank, labels, queries, _ = draws(num_bank=12)
    assert list(neighbour_votes(bank, labels, queries, 4, (5, 10, 20, 50))) == [5, 10]
    assert list(neighbour_votes(bank[:3], labels[:3], queries, 4, (5, 10))) == [3]


def test_length_of_features_does_not_matter():
    bank, labels, queries, _ = draws()
    longer = neighbour_votes(bank * torch.rand(len(bank), 1).add(0.1), labels, queries * 3, 4, (5,))
    assert torch.equal(longer[5], neighbour_votes(bank, labels, queries, 4, (5,))[5])


def test_separable_features_reach_one():
    labels = torch.arange(80) % 4
    parts = make_parts(table(torch.eye(4)[labels], labels), None, table(torch.eye(4)[labels], labels), seed=0)
    result = knn(parts)
    assert result["top1"] == result["top1_mean"] == result["top1_per_class"] == 1.0


def test_random_labels_reach_chance():
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(2000, 8, generator=generator), torch.randint(4, (2000,), generator=generator)
    parts = make_parts(table(features[:1000], labels[:1000]), None, table(features[1000:], labels[1000:]), seed=0)
    assert abs(knn(parts)["top1"] - 0.25) < 0.06


def test_choices_do_not_look_at_the_test_part():
    bank, labels, queries, truth = draws(num_bank=200, num_queries=50)
    honest = knn(make_parts(table(bank, labels), None, table(queries, truth), seed=0))
    shuffled = knn(make_parts(table(bank, labels), None, table(queries, (truth + 1) % 4), seed=0))
    assert honest["top1"] != shuffled["top1"]
    for key in ("view", "chosen", "validation"):
        assert honest[key] == shuffled[key]

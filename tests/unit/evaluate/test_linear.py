import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from pantomim.evaluate.features import FeatureTable
from pantomim.evaluate.few_labels import FewLabels, choose, draw_labelled, reduced
from pantomim.evaluate.linear import Linear, standardiser, train_probes
from pantomim.evaluate.parts import make_parts

CPU = torch.device("cpu")
QUICK = Linear("run", "data", lrs=(1e-3, 1e-2, 1e-1), epochs=30, batch_size=64)


def draws(count, seed=0, spread=1.0, num_classes=4, width=12):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(num_classes, (count,), generator=generator)
    return 5 + 3 * (centres[labels] + spread * torch.randn(count, width, generator=generator)), labels


def table(features, labels, names=("mean",)):
    return FeatureTable(dict.fromkeys(names, features), labels, tuple(str(index) for index in range(len(labels))))


def parts_of(train, test):
    return make_parts(table(*train), None, table(*test), seed=0)


def test_each_rate_trains_as_if_alone_by_autograd():
    features, labels = draws(70)
    lrs = (0.01, 0.2)
    ours = train_probes(features, labels, 4, lrs, epochs=4, batch_size=32, seed=3)
    inputs = standardiser(features)(features)
    for index, lr in enumerate(lrs):
        layer = torch.nn.Linear(12, 4)
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        optimiser = torch.optim.SGD(layer.parameters(), lr=lr, momentum=0.9)
        generator, step = torch.Generator().manual_seed(3), 0
        for _ in range(4):
            order = torch.randperm(70, generator=generator)
            for rows in (order[:32], order[32:64]):
                optimiser.param_groups[0]["lr"] = lr * 0.5 * (1 + np.cos(np.pi * step / 8))
                optimiser.zero_grad()
                F.cross_entropy(layer(inputs[rows]), labels[rows]).backward()
                optimiser.step()
                step += 1
        torch.testing.assert_close(ours.weight[:, index].T, layer.weight.data, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.bias[index], layer.bias.data, atol=1e-5, rtol=1e-4)


def test_as_good_as_logistic_regression():
    train, test = draws(600), draws(600, seed=1)
    scale = standardiser(train[0])
    model = LogisticRegression(max_iter=1000).fit(scale(train[0]).numpy(), train[1].numpy())
    theirs = model.score(scale(test[0]).numpy(), test[1].numpy())
    assert QUICK.score(parts_of(train, test), CPU)["top1"] > theirs - 0.02


def test_separable_features_reach_one():
    result = QUICK.score(parts_of(draws(200, spread=0.05), draws(100, 1, spread=0.05)), CPU)
    assert result["top1"] == result["top1_mean"] == result["top1_per_class"] == 1.0


def test_random_labels_reach_chance():
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(2000, 8, generator=generator), torch.randint(4, (2000,), generator=generator)
    parts = parts_of((features[:1000], labels[:1000]), (features[1000:], labels[1000:]))
    assert abs(QUICK.score(parts, CPU)["top1"] - 0.25) < 0.06


@pytest.mark.parametrize("how", ["linear", "few"])
def test_choices_do_not_look_at_the_test_part(how):
    train, test = draws(200), draws(100, seed=1)
    results = []
    for labels in (test[1], (test[1] + 1) % 4):
        parts = parts_of(train, (test[0], labels))
        if how == "linear":
            results.append(QUICK.score(parts, CPU))
        else:
            results.append(FewLabels("run", "data", labels_per_class=5, draws=2).score(parts))
    assert results[0]["top1"] != results[1]["top1"]
    for key in ("view", "chosen", "validation", "views"):
        assert results[0].get(key) == results[1].get(key)


def test_constant_features_do_no_harm():
    (features, labels), (queries, truth) = draws(200, spread=0.05), draws(100, 1, spread=0.05)
    features = torch.cat([features, torch.full((200, 1), 3.0)], dim=1)
    queries = torch.cat([queries, torch.full((100, 1), 1e6)], dim=1)
    assert QUICK.score(parts_of((features, labels), (queries, truth)), CPU)["top1"] == 1.0


def test_a_set_smaller_than_a_batch():
    parts = parts_of(draws(30, spread=0.05), draws(30, 1, spread=0.05))
    assert Linear("run", "data", epochs=50).score(parts, CPU)["top1"] == 1.0


@pytest.mark.parametrize("wrong", [{"lrs": ()}, {"lrs": (0.0,)}, {"epochs": 0}, {"batch_size": 0}])
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match=r"Linear\."):
        Linear("run", "data", **wrong)


def test_few_labels_take_the_same_number_of_each_class():
    labels = np.repeat([0, 1, 2], [30, 10, 20])
    first, again, other = (draw_labelled(labels, 10, seed=0, draw=draw) for draw in (0, 0, 1))
    assert np.bincount(labels[first]).tolist() == [10, 10, 10]
    assert first.tolist() == again.tolist() != other.tolist()


def test_more_labels_than_images_are_refused():
    with pytest.raises(ValueError, match=r"labels_per_class must be at most .* smallest class, 3; got 4"):
        draw_labelled(np.array([0] * 9 + [1] * 3), 4, seed=0, draw=0)


def test_few_labels_report_mean_and_std_over_draws():
    result = FewLabels("run", "data", labels_per_class=5, draws=4).score(parts_of(draws(400), draws(200, seed=1)))
    assert result["top1"] == pytest.approx(np.mean(result["draws"]))
    assert result["top1_std"] == pytest.approx(np.std(result["draws"], ddof=1))
    assert len(set(result["draws"])) > 1
    assert 0.3 < result["top1"] < 1.0


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_labels_a_class(count):
    result = FewLabels("run", "data", labels_per_class=count, draws=2).score(
        parts_of(draws(100, spread=0.01), draws(50, 1, spread=0.01))
    )
    assert result["top1"] == 1.0
    assert result["top1_std"] == 0.0


def test_reduction_to_the_span_changes_no_prediction():
    features, labels = draws(40, width=100)
    queries = draws(60, seed=1, width=100)[0]
    train, test = (
        standardiser(features)(features).double().numpy(),
        standardiser(features)(queries).double().numpy(),
    )
    small_train, small_test = reduced(train, test)
    assert small_train.shape == (40, 40)
    full, small = LogisticRegression(max_iter=5000), LogisticRegression(max_iter=5000)
    theirs = full.fit(train, labels.numpy()).predict_proba(test)
    ours = small.fit(small_train, labels.numpy()).predict_proba(small_test)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_strength_is_chosen_by_cross_validation():
    features, labels = draws(80, spread=3.0)
    model, score = choose(features.double().numpy(), labels.numpy(), seed=0)
    assert model.C < 1.0, "noisy labels ask for strong regularisation"
    assert 0.25 < score < 0.9

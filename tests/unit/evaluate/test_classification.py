import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from classifier_folder import labelled, write_classifier
from image_files import fill, png
from sklearn.metrics import confusion_matrix, f1_score, log_loss, top_k_accuracy_score

from pantomim.evaluate.classification import (
    Classification,
    TrainedClassifier,
    class_scores,
    hits_of,
    paired_difference,
)
from pantomim.formats.native import load_classifier, write_pair
from pantomim.report.folder import read_run
from pantomim.report.tasks import read_scored

CLASSES = tuple("abcdefg")


@pytest.fixture
def run(tmp_path):
    return write_classifier(tmp_path / "run", CLASSES)


@pytest.fixture
def data(tmp_path):
    return str(labelled(tmp_path / "set.npz", CLASSES, 63))


def test_scores_are_those_of_other_libraries():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(300, 7)), rng.integers(0, 6, 300)  # one class never occurs
    logits[np.arange(300), labels] += 1.5
    names = [f"{number}.png" for number in range(300)]
    scores = class_scores(torch.from_numpy(logits), torch.from_numpy(labels), CLASSES, names)
    guesses = logits.argmax(1)
    assert scores["top1"] == pytest.approx((guesses == labels).mean())
    assert scores["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(7)))
    assert scores["f1"] == pytest.approx(f1_score(labels, guesses, average="macro"))
    chances = torch.from_numpy(logits).softmax(1).numpy()
    assert scores["nll"] == pytest.approx(log_loss(labels, chances, labels=range(7)))
    matrix = confusion_matrix(labels, guesses, labels=range(7))
    ours = [[scores["confusion"].get(true, {}).get(guess, 0) for guess in CLASSES] for true in CLASSES]
    assert ours == matrix.tolist()
    assert list(scores["by_class"].values()) == pytest.approx((matrix.diagonal() / matrix.sum(1).clip(1))[:6])
    assert scores["top1_per_class"] == pytest.approx(np.mean(list(scores["by_class"].values())))
    low, high = scores["top1_interval"]
    assert low < scores["top1"] < high
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(scores["top1"] * (1 - scores["top1"]) / 300), rel=0.05)
    assert (hits_of(scores) == (guesses == labels)).all()
    losses = -np.log(chances[np.arange(300), labels])
    assert [hard["name"] for hard in scores["hardest"]] == [names[image] for image in (-losses).argsort()[:24]]
    first = losses.argmax()
    assert scores["hardest"][0] == {
        "name": names[first],
        "true": CLASSES[labels[first]],
        "predicted": CLASSES[guesses[first]],
        "probability": pytest.approx(chances[first].max()),
        "probability_of_true": pytest.approx(chances[first, labels[first]]),
    }


def test_of_five_classes_there_is_no_top_5():
    scores = class_scores(torch.eye(5), torch.arange(5), CLASSES[:5], list("12345"))
    assert "top5" not in scores
    assert scores["top1"] == scores["f1"] == 1
    assert scores["top1_interval"][0] == pytest.approx(1 / (1 + 1.96**2 / 5), rel=1e-4), "Wilson's, not 1"


def test_the_result_has_the_keys_of_others(run, data):
    path, result = Classification(str(run), data, chunk=10).to_file()
    assert path == run / "eval" / "finetune-set.json"
    assert json.loads(path.read_text()) == result
    assert (result["protocol"], result["dataset"], result["data"]["num_test"]) == ("finetune", "set", 63)
    assert result["classifier_sha256"] == json.loads((run / "classifier.json").read_text())["sha256"]
    assert result["chosen"]["step"] == 12
    arrays = np.load(data)
    test = arrays["split"] == "test"
    images = torch.from_numpy(arrays["images"][test]).permute(0, 3, 1, 2) / 255
    guesses = load_classifier(run)(images).argmax(1).numpy()
    expected = [CLASSES[guess] == label for guess, label in zip(guesses, arrays["labels"][test], strict=True)]
    assert (hits_of(result["trained"]) == expected).all()
    line = Classification(str(run), data).headline(result)
    assert f"top-1 {100 * np.mean(expected):.1f} % (95 % interval" in line


def test_weights_may_be_named_instead_of_the_folder(run, data):
    assert Classification(str(run / "classifier.safetensors"), data).to_file()[0].parent == run / "eval"
    with pytest.raises(ValueError, match=r"or its classifier\.safetensors; got .*encoder\.safetensors"):
        Classification(str(run / "encoder.safetensors"), data).to_file()


def test_classes_are_matched_by_name_not_by_place(tmp_path, run, data):
    """The same network with its outputs in another order scores the same; so does it on data with fewer classes."""
    classifier = TrainedClassifier.open(run, torch.device("cpu"))
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    shuffled = write_classifier(tmp_path / "shuffled", tuple(CLASSES[place] for place in order))
    head = classifier.module.head
    about = json.loads((shuffled / "classifier.json").read_text())
    weights = classifier.module.state_dict() | {"head.weight": head.weight[order], "head.bias": head.bias[order]}
    write_pair(shuffled, "classifier", weights, about)
    one, two = (Classification(str(folder), data).to_file()[1]["trained"] for folder in (run, shuffled))
    assert one["hits"] == two["hits"]
    assert one["confusion"] == two["confusion"]
    few = labelled(tmp_path / "few.npz", ("g", "b"), 8)
    assert set(Classification(str(run), str(few)).to_file()[1]["trained"]["by_class"]) == {"b", "g"}


def test_the_centre_of_a_larger_image_is_taken(tmp_path):
    run = write_classifier(tmp_path / "run", CLASSES, test_margin=1.25)
    data = labelled(tmp_path / "large.npz", CLASSES, 14, side=20)
    arrays = np.load(data)
    images = torch.from_numpy(arrays["images"][arrays["split"] == "test"]).permute(0, 3, 1, 2)[:, :, 2:-2, 2:-2] / 255
    guesses = load_classifier(run)(images).argmax(1)
    hits = hits_of(Classification(str(run), str(data)).to_file()[1]["trained"])
    assert (hits == (guesses == torch.arange(14) % 7).numpy()).all()


def test_another_split_has_its_own_file(run, data):
    paths = {Classification(str(run), data, split=split).to_file()[0].name for split in ("test", "train", "all")}
    assert paths == {"finetune-set.json", "finetune-set-train.json", "finetune-set-all.json"}


def test_other_images_of_the_same_name_are_not_overwritten(tmp_path, run, data, monkeypatch):
    path, first = Classification(str(run), data).to_file()
    (tmp_path / "elsewhere").mkdir()
    other = str(labelled(tmp_path / "elsewhere" / "set.npz", CLASSES, 20, seed=5))
    fewer = replace(Classification(str(run), data), test_images=14)
    monkeypatch.chdir(tmp_path / "elsewhere")
    for spec in (other, "set.npz"):  # also under another name of the same place
        written, result = Classification(str(run), spec).to_file()
        assert re.fullmatch(r"finetune-set-[0-9a-f]{8}", written.stem)
        assert json.loads(written.read_text()) == result
    assert fewer.to_file()[0] not in (path, written)
    assert fewer.to_file()[0] == fewer.to_file()[0], "the same evaluation has the same file"
    assert json.loads(path.read_text()) == first
    assert len(list((run / "eval").glob("*.json"))) == 3
    compared = replace(Classification(str(run), data), against=str(run))
    assert compared.to_file()[0] == path, "a comparison is added"
    assert Classification(str(run), data).to_file()[0] != path, "and stays"
    (run / "config.yaml").write_text("{}")
    titles = [found.data for found in read_scored(read_run(run).evaluations)]
    assert len(set(titles)) == len(titles) == 4
    assert any("spec set.npz" in title for title in titles)
    assert any(title.endswith("test_images 14)") for title in titles)


def test_broken_images_are_left_out_and_told(tmp_path):
    run = write_classifier(tmp_path / "run", ("x", "y"))
    files = {f"test/{c}/{k:03}.png": png(k, (16, 16)) for c in "xy" for k in range(60)}
    files |= {f"train/{c}/{k}.png": png(k, (16, 16)) for c in "xy" for k in range(2)}
    files["test/x/007.png"] = files["test/x/007.png"][:-60]
    evaluation = Classification(str(run), str(fill(tmp_path / "cut", files)))
    _, result = evaluation.to_file()
    assert result["data"]["num_test"] == len(result["trained"]["hits"]) == 119
    assert [broken["name"] for broken in result["data"]["broken"]] == ["test/x/007.png"]
    assert "1 broken image left out" in evaluation.headline(result)


def test_two_runs_on_the_same_images(tmp_path, run, data):
    other = write_classifier(tmp_path / "other", CLASSES, seed=3)
    with pytest.raises(ValueError, match=r"Classification\.against must .* which has no"):
        Classification(str(run), data, against=str(other)).to_file()
    _, theirs = Classification(str(other), data).to_file()
    compared = Classification(str(run), data, against=str(other))
    _, result = compared.to_file()
    found = result["against"]
    assert found["difference"] == pytest.approx(result["trained"]["top1"] - theirs["trained"]["top1"])
    assert found["interval"][0] < found["difference"] < found["interval"][1]
    assert "points against" in compared.headline(result)
    with pytest.raises(ValueError, match="which has other images in"):
        Classification(str(run), data, test_images=7, against=str(other)).to_file()


def test_paired_differences_cover_the_truth_as_often_as_they_claim():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        chance = rng.random(300) < 0.6
        right_a, right_b = chance | (rng.random(300) < 0.25), chance | (rng.random(300) < 0.10)
        low, high = paired_difference(right_a, right_b)["interval"]
        covered += low <= 0.4 * (0.25 - 0.10) <= high
    assert 0.92 < covered / 400 < 0.98
    alike = paired_difference(np.array([True, False]), np.array([True, False]))
    assert alike == {"difference": 0.0, "interval": [0.0, 0.0], "only_this": 0, "only_other": 0}
    with pytest.raises(ValueError, match="the same images twice"):
        paired_difference(np.ones(3, bool), np.ones(4, bool))


def arrays(tmp_path, name, shape=(8, 16, 16, 3), dtype=np.uint8, **more):
    np.savez(tmp_path / name, images=np.zeros(shape, dtype), **more)
    return str(tmp_path / name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda at: str(labelled(at / "z.npz", ("a", "zebra", "b"))),
            r"got zebra in .*unknown to it.*rename",
        ),
        (lambda at: arrays(at, "bare.npz"), r"Classifier\.images must have labels"),
        (lambda at: arrays(at, "g.npz", (8, 16, 16), labels=list("ab") * 4), r"an encoder of 3 and .* of 1\."),
        (
            lambda at: arrays(at, "u.npz", dtype=np.uint16, labels=list("ab") * 4),
            r"\(uint8: 255 becomes 1\); got another \(uint16: 65535 becomes 1\)",
        ),
    ],
    ids=["unknown class", "no labels", "channels", "number type"],
)
def test_data_that_do_not_fit_are_refused(tmp_path, run, make, message):
    with pytest.raises(ValueError, match=message):
        Classification(str(run), make(tmp_path), split="all").to_file()
    assert not (run / "eval").exists()


def test_an_encoder_alone_is_no_classifier(tmp_path, run, data):
    (tmp_path / "pre").mkdir()
    (tmp_path / "pre" / "encoder.json").write_text("{}")
    with pytest.raises(ValueError, match=r"which has an encoder alone\. `pantomim finetune` makes a classifier"):
        Classification(str(tmp_path / "pre"), data).to_file()
    with pytest.raises(ValueError, match="which does not exist"):
        Classification(str(tmp_path / "nowhere"), data).to_file()


@pytest.mark.parametrize("changes", [{"classes": ["a", "b"]}, {"classes": []}, {"test_margin": None}])
def test_a_description_that_lacks_something_is_refused(run, data, changes):
    about = json.loads((run / "classifier.json").read_text()) | changes
    (run / "classifier.json").write_text(json.dumps({key: value for key, value in about.items() if value is not None}))
    with pytest.raises(ValueError, match="not the names of all 7 classes"):
        Classification(str(run), data).to_file()


def test_a_class_that_only_train_has_may_be_unknown(tmp_path, run):
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    split = ["train"] * 3 + ["test"] * 6
    np.savez(tmp_path / "more.npz", images=images, labels=["a", "b", "zebra", *"ababab"], split=split)
    assert Classification(str(run), str(tmp_path / "more.npz")).to_file()[1]["data"]["num_test"] == 6

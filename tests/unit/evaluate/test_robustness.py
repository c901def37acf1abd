import json
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from classifier_folder import labelled, write_classifier
from image_files import fill, png
from PIL import Image

from pantomim.data.sources import open_source
from pantomim.evaluate.classification import Classification, TrainedClassifier
from pantomim.evaluate.robustness import ALEXNET_ERRORS, STRENGTHS, Robustness, corrupted, subset_top1

CLASSES = tuple("abc")
INFO = Path(timm.data.__file__).parent / "_info"
SETS = ("imagenet", "imagenet_a", "imagenet_r")
SYNSETS = {name: (INFO / f"{name}_synsets.txt").read_text().split() for name in SETS}


@pytest.fixture
def run(tmp_path):
    return write_classifier(tmp_path / "run", CLASSES)


@pytest.fixture
def data(tmp_path):
    return str(labelled(tmp_path / "set.npz", CLASSES, 60))


def images(count=3, channels=3, side=16):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("kind", STRENGTHS)
def test_stronger_corruptions_change_an_image_more(kind, channels):
    before = images(channels=channels, side=64)
    noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(1))
    made = [corrupted(before, kind, severity, noise) for severity in range(5)]
    off = [(after - before).abs().mean().item() for after in made]
    assert off[0] > 0
    assert off == sorted(off)
    for after in made:
        assert after.shape == before.shape
        assert 0 <= after.min() <= after.max() <= 1


def test_corruptions_are_what_they_are_called():
    before, noise = images(), torch.zeros(3, 3, 16, 16)
    assert torch.equal(corrupted(before, "noise", 4, noise), before)
    faded = corrupted(before, "contrast", 1, noise)
    assert torch.allclose(faded.mean((2, 3)), before.mean((2, 3)), atol=1e-6)
    assert torch.allclose(faded.std((2, 3)), 0.3 * before.std((2, 3)), atol=1e-6)
    edges = [
        torch.cat([torch.zeros(1, 1, side, side // 2), torch.ones(1, 1, side, side // 2)], 3) for side in (56, 112)
    ]
    small, large = (corrupted(edge, "blur", 4, noise)[0, 0, 0] for edge in edges)
    assert torch.allclose(small, large.view(-1, 2).mean(1), atol=0.02), "the same share of the size"


def test_errors_of_our_corruptions(run, data):
    evaluation = Robustness(str(run), data, chunk=7)
    path, result = evaluation.to_file()
    assert path == run / "eval" / "robustness-set.json"
    assert json.loads(path.read_text()) == result
    scores = result["trained"]
    plain = Classification(str(run), data).to_file()[1]["trained"]
    assert scores["top1"] == pytest.approx(plain["top1"])
    increases = []
    for kind in STRENGTHS:
        found = scores["own_corruptions"][kind]
        increases.append(np.mean(found["errors"]) / (1 - plain["top1"]) - 1)
        assert found["relative_error_increase"] == pytest.approx(increases[-1])
    assert scores["relative_error_increase"] == pytest.approx(np.mean(increases))
    assert "relative error increase by corruptions of our own" in evaluation.headline(result)
    again = Robustness(str(run), data, chunk=60).to_file()[1]["trained"]
    assert again == scores, "noise does not hang on how many images are seen at once"


def test_a_classifier_without_errors_has_no_relative_increase(tmp_path):
    run = write_classifier(tmp_path / "run", CLASSES)
    source = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "bare.npz", images=source)
    classifier = TrainedClassifier.open(run, torch.device("cpu"))
    ((logits, _),) = classifier.logits(open_source(str(tmp_path / "bare.npz"), "all"), 100)
    labels, split = np.array(CLASSES)[logits.argmax(1)], np.repeat(["train", "test"], 30)
    np.savez(tmp_path / "own.npz", images=np.tile(source, (2, 1, 1, 1)), labels=np.tile(labels, 2), split=split)
    evaluation = Robustness(str(run), str(tmp_path / "own.npz"))
    result = evaluation.to_file()[1]
    assert result["trained"]["top1"] == 1
    assert result["trained"]["relative_error_increase"] is None
    assert "clean top-1 100.0 %" in evaluation.headline(result)


def synset_folder(root, synsets, size=(16, 16), count=2):
    return fill(root, {f"{c}/{k}.png": png(k + 7 * n, size) for n, c in enumerate(synsets) for k in range(count)})


def guesses(run, folder, names):
    module = TrainedClassifier.open(run, torch.device("cpu")).module
    pictures = [np.array(Image.open(folder / name)) for name in names]
    return module(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255).detach()


def test_imagenet_c_is_taken_without_a_resize_and_over_the_fifteen_types(tmp_path, data):
    run = write_classifier(tmp_path / "run", CLASSES, test_margin=1.25)
    folder = tmp_path / "C"
    for number, kind in enumerate([*ALEXNET_ERRORS, "speckle_noise"]):
        for severity in range(1, 6):
            seeds = {f"{c}/{k}.png": number + severity + 40 * k + n for n, c in enumerate("ab") for k in (0, 1)}
            files = {name: png(seed, (16, 16)) for name, seed in seeds.items()}
            fill(folder / kind / str(severity), files)
    evaluation = Robustness(str(run), data, imagenet_c=str(folder))
    result = evaluation.to_file()[1]
    found = result["trained"]["imagenet_c"]
    assert list(found["errors"]) == list(ALEXNET_ERRORS)
    names = ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    for kind, severity in (("fog", 2), ("snow", 5)):
        wrong = guesses(run, folder / kind / str(severity), names).argmax(1) != torch.tensor([0, 0, 1, 1])
        assert found["errors"][kind][severity - 1] == pytest.approx(wrong.float().mean().item())
    relative = {kind: np.mean(errors) / ALEXNET_ERRORS[kind] for kind, errors in found["errors"].items()}
    assert found["corruption_error"] == pytest.approx(relative)
    assert found["mce"] == pytest.approx(np.mean(list(relative.values())))
    assert "ImageNet-C mCE" in evaluation.headline(result)


def test_without_all_types_there_is_no_mce(tmp_path, run, data):
    for severity in range(1, 6):
        synset_folder(tmp_path / "C" / "fog" / str(severity), "ab")
    evaluation = Robustness(str(run), data, imagenet_c=str(tmp_path / "C"))
    result = evaluation.to_file()[1]
    found = result["trained"]["imagenet_c"]
    assert found["mce"] is None
    assert len(found["missing"]) == 14
    assert set(found["corruption_error"]) == {"fog"}
    assert "no ImageNet-C mCE, as there is no gaussian_noise" in evaluation.headline(result)


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_the_answer_is_among_the_200_classes(tmp_path, data, name):
    synsets = SYNSETS[name]
    order = np.random.default_rng(0).permutation(1000)  # outputs of the classifier in any order
    run = write_classifier(tmp_path / "run", (*CLASSES, *(SYNSETS["imagenet"][k] for k in order)))
    folder = synset_folder(tmp_path / name, synsets[5:9])
    evaluation = Robustness(str(run), data, **{name: str(folder)})
    result = evaluation.to_file()[1]
    names = [f"{synset}/{k}.png" for synset in synsets[5:9] for k in range(2)]
    logits, classes = guesses(run, folder, names), TrainedClassifier.open(run, torch.device("cpu")).classes
    subset = [classes.index(synset) for synset in synsets]
    best = [synsets[place] for place in logits[:, subset].argmax(1)]
    expected = np.mean([guess == file.partition("/")[0] for guess, file in zip(best, names, strict=True)])
    assert result["trained"][name] == {"top1": pytest.approx(expected), "num_test": 8, "num_broken": 0}
    assert f"ImageNet-{name[-1].upper()} top-1 {100 * expected:.1f} %" in evaluation.headline(result)


def test_sketch_is_over_all_classes(tmp_path, run, data):
    folder = synset_folder(tmp_path / "sketch", "ac", count=4)
    names = [f"{c}/{k}.png" for c in "ac" for k in range(4)]
    result = Robustness(str(run), data, imagenet_sketch=str(folder)).to_file()[1]
    right = guesses(run, folder, names).argmax(1) == torch.tensor([0] * 4 + [2] * 4)
    assert result["trained"]["imagenet_sketch"]["top1"] == pytest.approx(right.float().mean().item())


def test_a_subset_changes_the_answer():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 0.0, 4.0, 1.0]])
    assert subset_top1(logits, torch.tensor([2, 3]), torch.tensor([1, 0])) == 1.0
    assert subset_top1(logits, torch.arange(4), torch.tensor([3, 2])) == 0.0


@pytest.mark.parametrize(
    ("classes", "sets", "message"),
    [
        (CLASSES, {"imagenet_c": "nothing"}, r"Robustness\.imagenet_c must hold folders such as gaussian_noise/1"),
        (CLASSES, {"imagenet_c": "half"}, r"Source\.spec must be .*gaussian_noise/2"),
        (CLASSES, {"imagenet_a": "letters"}, r"Classifier\.classes must be ImageNet's.*199 others"),
        ((*CLASSES, *SYNSETS["imagenet"]), {"imagenet_r": "letters"}, r"imagenet_r must have the classes of that set"),
    ],
    ids=["no corruption", "a missing severity", "another classifier", "another set"],
)
def test_sets_that_do_not_fit_are_refused(tmp_path, data, classes, sets, message):
    run = write_classifier(tmp_path / "run", classes)
    synset_folder(tmp_path / "letters", "ab")
    synset_folder(tmp_path / "half" / "gaussian_noise" / "1", "ab")
    sets = {name: str(tmp_path / folder) for name, folder in sets.items()}
    with pytest.raises(ValueError, match=message):
        Robustness(str(run), data, **sets).to_file()
    assert not (run / "eval").exists()


def test_values_without_a_range_are_refused(tmp_path):
    run = write_classifier(tmp_path / "run", CLASSES, scale={"divisor": 1.0})
    floats = np.random.default_rng(0).random((12, 16, 16, 3), dtype=np.float32)
    np.savez(tmp_path / "floats.npz", images=floats, labels=list("abc") * 4)
    with pytest.raises(ValueError, match=r"Robustness\.data must have values with a known range.*float32"):
        Robustness(str(run), str(tmp_path / "floats.npz")).to_file()

import json

import numpy as np
import pytest
import torch
from image_files import fill, png
from masked_images import encoded, masked_arrays, masked_folder, regions
from segmenter_folder import write_segmenter
from sklearn.metrics import jaccard_score

from pantomim.config import DataConfig, Pretrain, to_yaml
from pantomim.core.scores import intersection_over_union, means
from pantomim.evaluate.segmentation import standard_error
from pantomim.evaluate.segmenter import (
    SegmenterEvaluation,
    TrainedSegmenter,
    most_frequent,
    packed,
    paired_difference,
    pixel_scores,
    unpacked,
)
from pantomim.formats.native import load_segmenter, write_pair
from pantomim.nn.tokens import enlarge
from pantomim.nn.windows import sliding_logits

CLASSES = ("black", "red", "green")


def counts_of(count, seed=0, quality=0.6):
    """Counts of images of which each class has its own share, and some is right."""
    rng = np.random.default_rng(seed)
    labelled = rng.multinomial(400, rng.dirichlet([6, 3, 1], count))
    hits = rng.binomial(labelled, rng.beta(8 * quality, 8 * (1 - quality), labelled.shape))
    predicted = hits + rng.binomial(60, 0.3, labelled.shape)
    return torch.from_numpy(np.stack([hits, predicted, labelled], axis=1))


@pytest.fixture
def run(tmp_path):
    return write_segmenter(tmp_path / "run")


@pytest.fixture
def data(tmp_path):
    return str(masked_folder(tmp_path / "colours", {"train": 4, "test": 6}))


def test_scores_are_those_of_all_pixels_at_the_size_of_the_masks(run, data):
    path, result = SegmenterEvaluation(str(run), data).to_file()
    assert path == run / "eval" / "segment-colours.json"
    assert json.loads(path.read_text()) == result
    segmenter, guesses, truth = load_segmenter(run), [], []
    for k in range(6):
        mask = regions(100 + k, (40 + k % 3, 30 + k % 2))
        image = np.array([[0, 0, 0], [250, 0, 0], [0, 250, 0]], np.float32)[mask].transpose(2, 0, 1)[None]
        height = int(mask.shape[0] * 16 / mask.shape[1] + 0.5)
        small = enlarge(torch.from_numpy(image), (height, 16)).round() / 255
        with torch.no_grad():
            logits = sliding_logits(segmenter, small, 3, (16, 16), (8, 8), segmenter.encoder.mean.flatten())
        guesses.append(enlarge(logits, mask.shape).argmax(dim=1).numpy().ravel())
        truth.append(mask.ravel())
    expected = jaccard_score(np.concatenate(truth), np.concatenate(guesses), average=None)
    assert result["trained"]["iou"] == pytest.approx(dict(zip(CLASSES, expected, strict=True)))
    assert result["trained"]["miou"] == pytest.approx(expected.mean())
    assert (result["protocol"], result["dataset"], result["data"]["num_test"]) == ("segment", "colours", 6)
    assert result["segmenter_sha256"] == json.loads((run / "segmenter.json").read_text())["sha256"]
    assert (result["chosen"]["step"], result["test_size"], result["stride"]) == (12, [64, 16], 0.5)
    line = SegmenterEvaluation(str(run), data).headline(result)
    assert f"mean IoU {100 * expected.mean():.1f} ± {100 * result['trained']['miou_error']:.1f} %" in line
    assert f"{result['most_frequent']['class']} everywhere" in line


def test_scores_by_class_leave_out_what_does_not_occur():
    counts = torch.tensor([[[3, 0, 0, 0], [4, 1, 0, 0], [5, 0, 2, 0]], [[1, 0, 0, 0], [2, 0, 0, 0], [1, 0, 1, 0]]])
    scores = pixel_scores(counts, ("a", "only predicted", "only labelled", "neither"))
    assert scores["iou"] == pytest.approx({"a": 4 / 8, "only predicted": 0, "only labelled": 0})
    assert scores["accuracy"] == pytest.approx({"a": 4 / 6, "only labelled": 0})
    assert scores["labelled"] == pytest.approx({"a": 6 / 9, "only predicted": 0, "only labelled": 3 / 9})
    assert scores["miou"] == pytest.approx(1 / 6)
    assert scores["miou_error"] == standard_error(counts, 0)
    assert (unpacked(json.loads(json.dumps(scores["counts"]))) == counts).all()
    assert (unpacked(packed(counts_of(30))) == counts_of(30)).all()


def test_one_class_everywhere_is_the_baseline():
    counts = torch.tensor([[[0, 0, 0], [0, 9, 1], [2, 7, 1]], [[0, 0, 0], [0, 0, 10], [3, 7, 0]]])
    found = most_frequent(counts, CLASSES)
    assert found == {"class": "red", "miou": pytest.approx(14 / 20 / 3), "mean_accuracy": 1 / 3, "pixel_accuracy": 0.7}


def test_classes_are_matched_by_name_not_by_place(tmp_path, run, data):
    """The same network with its outputs in another order scores the same; so does it with masks of other ids."""
    order, weights, about = (
        [2, 0, 1],
        load_segmenter(run).state_dict(),
        json.loads((run / "segmenter.json").read_text()),
    )
    weights = {name: w[order] if "conv_seg" in name else w for name, w in weights.items()}
    plain = {name.removeprefix("encoder."): weight for name, weight in weights.items()}
    other = tmp_path / "other"
    other.mkdir()
    write_pair(other, "segmenter", plain, about | {"classes": [CLASSES[place] for place in order]})
    one, two = (SegmenterEvaluation(str(folder), data).to_file()[1]["trained"] for folder in (run, other))
    assert one["iou"] == pytest.approx(two["iou"])
    assert one["miou"] == two["miou"]
    renamed = masked_folder(tmp_path / "renamed", {"train": 4, "test": 6})
    for file in (renamed / "masks" / "test").iterdir():
        number = int(file.stem)
        file.write_bytes(encoded((regions(100 + number, (40 + number % 3, 30 + number % 2)) + 7).astype(np.uint8)))
    names = {"8": "red", "7": "black", "9": "green", "3": "unicorn"}
    (renamed / "classes.json").write_text(json.dumps(names))
    three = SegmenterEvaluation(str(run), str(renamed)).to_file()[1]["trained"]
    assert three == one, "a class that occurs in no mask of the part may be unknown"
    (renamed / "classes.json").write_text(json.dumps(names | {"8": "unicorn"}))
    with pytest.raises(
        ValueError, match=r"Segmenter.classes must include those of the images; got unicorn in masks of"
    ):
        SegmenterEvaluation(str(run), str(renamed)).to_file()


def test_without_names_on_both_sides_ids_decide(tmp_path):
    data = masked_arrays(tmp_path / "bare.npz", side=20)
    with np.load(data) as arrays:
        np.savez(data, **{name: arrays[name] for name in ("images", "masks", "split")})
    unnamed = write_segmenter(tmp_path / "unnamed", ("class 0", "class 1", "class 2"))
    named = write_segmenter(tmp_path / "named")
    assert SegmenterEvaluation(str(unnamed), str(data)).to_file()[1]["trained"]["iou"].keys() == {
        "class 0",
        "class 1",
        "class 2",
    }
    with pytest.raises(ValueError, match=r"got class 0, class 1, class 2 in .*It was trained on black, red, green"):
        SegmenterEvaluation(str(named), str(data)).to_file()


def test_other_masks_of_the_same_images_are_not_overwritten(tmp_path, run):
    data = masked_folder(tmp_path / "colours", {"train": 4, "test": 4})
    (data / "masks").rename(data / "masks_a")
    (data / "masks_b").mkdir()
    fill(
        data,
        {
            file.relative_to(data).as_posix().replace("_a", "_b"): file.read_bytes()
            for file in data.rglob("masks_a/*/*")
        },
    )
    path, _ = SegmenterEvaluation(str(run), str(data), masks="masks_a").to_file()
    assert SegmenterEvaluation(str(run), str(data), masks="masks_b").to_file()[0] != path
    assert SegmenterEvaluation(str(run), str(data), masks="masks_a").to_file()[0] == path
    first = json.loads(path.read_text())
    SegmenterEvaluation(str(run), str(data), masks="masks_a", ignore=1).to_file()
    assert json.loads(path.read_text()) == first
    _, drawn = SegmenterEvaluation(str(run), str(data), masks="masks_a", test_images=2, ignore=255).to_file()
    assert drawn["data"]["num_test"] == 2


def test_the_paired_interval_covers_the_truth_as_often_as_it_claims():
    covered, width, apart = 0, [], []
    truth = means(counts_of(40_000, 1, 0.7).sum(dim=0))["miou"] - means(counts_of(40_000, 1, 0.6).sum(dim=0))["miou"]
    for seed in range(2, 202):
        one, two = counts_of(60, seed, 0.7), counts_of(60, seed, 0.6)
        found = paired_difference(one, two)
        low, high = found["interval"]
        covered += low <= truth <= high
        width.append(high - low)
        apart.append(2 * 1.96 * np.hypot(standard_error(one, 0), standard_error(two, 0)))
    assert 0.9 < covered / 200 < 0.99
    assert np.mean(width) < np.mean(apart), "images that are hard for both say nothing"
    same = paired_difference(counts_of(20), counts_of(20))
    assert same == {"difference": 0.0, "interval": [0.0, 0.0]}
    with pytest.raises(ValueError, match="the same images twice; got 3 and 4"):
        paired_difference(counts_of(3), counts_of(4))


def test_broken_images_are_left_out_and_told(tmp_path, run):
    data = masked_folder(tmp_path / "many", {"train": 2, "test": 120})
    (data / "masks" / "test" / "007.png").write_bytes(encoded(regions(0, (9, 9))))
    evaluation = SegmenterEvaluation(str(run), str(data))
    _, result = evaluation.to_file()
    assert result["data"]["num_test"] == result["trained"]["counts"]["shape"][0] == 119
    assert [broken["name"] for broken in result["data"]["broken"]] == ["test/007.png"]
    assert "1 broken image left out" in evaluation.headline(result)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["a", "b"]}, "not the names and ids of all 3 classes"),
        ({"class_ids": [0, 1]}, "not the names and ids of all 3 classes"),
        ({"stride": None}, "no stride"),
    ],
)
def test_a_description_that_lacks_something_is_refused(run, data, changes, message):
    about = json.loads((run / "segmenter.json").read_text()) | changes
    (run / "segmenter.json").write_text(json.dumps({key: value for key, value in about.items() if value is not None}))
    with pytest.raises(ValueError, match=message):
        SegmenterEvaluation(str(run), data).to_file()


def test_names_that_are_the_same_are_refused(tmp_path, data):
    run = write_segmenter(tmp_path / "twins", ("black", "red", "red"))
    with pytest.raises(ValueError, match=r"Segmenter.classes must have different names; got black, red, red"):
        SegmenterEvaluation(str(run), data).to_file()


@pytest.mark.parametrize(
    ("images", "message"),
    [((8, 20, 20), r"an encoder of 3 and .* of 1\."), ((8, 20, 20, 3), "uint16: 65535 becomes 1")],
)
def test_images_unlike_those_of_the_training_are_refused(tmp_path, run, images, message):
    dtype = np.uint8 if len(images) == 3 else np.uint16
    masks = np.stack([regions(k, (20, 20)) for k in range(8)])
    np.savez(tmp_path / "a.npz", images=np.zeros(images, dtype), masks=masks, mask_classes=CLASSES)
    with pytest.raises(ValueError, match=message):
        SegmenterEvaluation(str(run), str(tmp_path / "a.npz"), split="all").to_file()


def test_masks_without_a_class_are_refused(tmp_path, run):
    np.savez(tmp_path / "a.npz", images=np.zeros((5, 20, 20, 3), np.uint8), masks=np.full((5, 20, 20), 255))
    with pytest.raises(ValueError, match=r"Segmenter.masks must have pixels with a class; got none in masks of"):
        SegmenterEvaluation(str(run), str(tmp_path / "a.npz"), split="all").to_file()


def test_ids_of_predictions_are_those_of_the_files(tmp_path):
    run = write_segmenter(tmp_path / "run", class_ids=[3, 7, 200], no_class=0)
    stored = TrainedSegmenter.open(run, torch.device("cpu")).stored(np.array([[0, 1], [2, 255]]))
    assert stored.tolist() == [[3, 7], [200, 0]]


def test_the_mean_is_over_what_occurs():
    counts = counts_of(5).sum(dim=0)
    assert means(counts)["miou"] == pytest.approx(intersection_over_union(counts).mean().item())


def test_a_single_photo_is_no_masked_source(tmp_path, run):
    photos = fill(tmp_path / "photos", {"a.png": png(0, (20, 20))})
    with pytest.raises(ValueError, match="must have masks beside its images"):
        SegmenterEvaluation(str(run), str(photos)).to_file()


@pytest.mark.parametrize(
    ("about", "given", "ignore", "reduce_zero"),
    [
        ({"ignore": 254, "reduce_zero": None, "no_class": 254}, {}, 254, False),
        ({"ignore": 255, "reduce_zero": True, "no_class": 0}, {}, 255, True),
        ({"no_class": 254}, {}, 254, False),  # as versions before wrote
        ({"ignore": 254, "reduce_zero": True, "no_class": 0}, {"ignore": 7, "reduce_zero": False}, 7, False),
    ],
)
def test_what_is_no_class_is_what_it_was_in_training(run, tmp_path, about, given, ignore, reduce_zero):
    file = run / "segmenter.json"
    described = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in described.items() if name != "ignore"} | about))
    root = masked_folder(tmp_path / "plain")
    (root / "classes.json").unlink(missing_ok=True)
    masks = SegmenterEvaluation(str(run), str(root), **given).source[1]
    assert (masks.ignore, masks.reduce_zero) == (ignore, reduce_zero)


def test_images_that_training_saw_are_not_scored(run, tmp_path):
    """Of a source without test images, where less than the fixed fifth was held back."""
    root = masked_folder(tmp_path / "whole", {"": 12})
    config = Pretrain(recipe="x", data=DataConfig(str(root), holdout=0.1))
    (run / "config.yaml").write_text(to_yaml(config))
    with pytest.raises(ValueError, match=r"must have images that training did not see.* held back 10%"):
        SegmenterEvaluation(str(run), str(root)).to_file()

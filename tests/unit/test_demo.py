"""The demo's sentence follows from its numbers, and its page from its runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_images

from pantomim.cli import main
from pantomim.data.sources import open_source
from pantomim.demo import CONTENDERS, Contest, learning_curve
from pantomim.evaluate.classification import difference_over_draws, paired_difference


def contest(shares: dict[str, float], draws: int = 3, images: int = 1000, per_class: int = 10) -> Contest:
    """Each contender wrong on this share of the images, all about the same: the hardest."""
    hardness = np.random.default_rng(0).permutation(images) / images
    hits = {who: np.stack([hardness >= share] * draws) for who, share in shares.items()}
    return Contest(10 * per_class, per_class, hits)


@pytest.mark.parametrize(
    ("shares", "says"),
    [
        ({"pretrained": 0.11, "scratch": 0.19, "pixels": 0.27}, "With 100 labels: 11 errors in 100 instead of 19 from"),
        ({"pretrained": 0.11, "scratch": 0.115}, "11.0 errors in 100 instead of 11.5 from scratch (0.5 points fewer;"),
        ({"pretrained": 0.11, "scratch": 0.11}, "against 11.0 from scratch (0.0 points fewer, which can be chance;"),
        ({"pretrained": 0.19, "scratch": 0.11}, "19 errors in 100 against 11 from scratch (8.0 points more; paired"),
    ],
)
def test_the_sentence_says_what_the_numbers_say(shares: dict[str, float], says: str) -> None:
    found = contest(shares)
    assert says in found.sentence
    won = all(found.ahead_of(rival)[1] > 0 for rival in found.rivals)
    assert ("instead of" in found.sentence) == won


def test_the_interval_is_wider_for_draws_that_disagree() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.random((4, 500)) < 0.8
    steady = theirs | (rng.random((4, 500)) < 0.3)
    uneven = np.where([[True], [False], [True], [False]], True, theirs)
    assert difference_over_draws(steady[:1], theirs[:1]) == paired_difference(steady[0], theirs[0])
    low, high = difference_over_draws(steady, theirs)["interval"]
    assert 0 < low < steady.mean() - theirs.mean() < high < 0.12
    wide = difference_over_draws(uneven, theirs)
    assert wide["interval"][0] < 0 < 0.05 < wide["difference"]  # two draws of four are not enough
    assert difference_over_draws(theirs, theirs)["interval"] == [0.0, 0.0]


def test_the_learning_curve_goes_from_few_labels_to_many() -> None:
    shares = dict.fromkeys(CONTENDERS, 0.2)
    assert learning_curve([contest(shares)]) is None
    chart = learning_curve([contest(shares), contest(dict.fromkeys(CONTENDERS, 0.4), per_class=1)])
    assert chart is not None
    assert "pre-trained 40.0, 20.0" in chart.wide


def test_no_crop_of_a_photograph_is_seen_in_training_and_in_tests() -> None:
    train, test = open_source("sample_photos", "train"), open_source("sample_photos", "test")
    assert train.facts.size == test.facts.size == (64, 64)
    seen = {train.read(index).tobytes() for index in range(len(train))}
    assert not any(test.read(index).tobytes() in seen for index in range(len(test)))


def test_a_demo_of_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--out", str(tmp_path), "--steps", "2", "--finetune-steps", "1", "--draws", "1", "--labels-per-class", "1"]
    main(["demo", *asked])
    told = json.loads((tmp_path / "demo.json").read_text())
    assert capsys.readouterr().out.splitlines()[-1] == told["sentence"]
    page = (tmp_path / "report.html").read_text()
    assert told["sentence"] in page
    assert "Photographs: what it makes of masked patches" in page
    assert set(told["results"][0]["errors"]) == set(CONTENDERS)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_demo_of_own_images(tmp_path: Path, labelled: bool, capsys: pytest.CaptureFixture[str]) -> None:
    source = tiny_images(tmp_path / "own.npz")
    if not labelled:
        np.savez(source, images=np.load(source)["images"])
    main(["demo", str(source), "--out", str(tmp_path / "demo"), "--steps", "2", "--finetune-steps", "1"])
    sentence = capsys.readouterr().out.splitlines()[-1]
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "Nearest neighbours" in page
    assert "what it makes of masked patches" in page
    assert ("errors in 100" in sentence) == labelled

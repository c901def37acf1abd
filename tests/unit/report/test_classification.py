"""The page of a fine-tuned run: what it scores, where it errs, and what it does not claim."""

import json
import re

import pytest
from run_folder import write_finetuned, write_json, write_result, write_run

from pantomim.report import make_report
from pantomim.report.tasks import Classified


def page_of(run):
    text = make_report(run).read_text(encoding="utf-8")
    body = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    return text, re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body).replace("\N{NO-BREAK SPACE}", " "))


def test_scores_with_their_interval_come_first(tmp_path):
    run = write_finetuned(tmp_path / "run")
    config = (run / "config.yaml").read_text().replace("mae_demo", "finetune_mae")
    (run / "config.yaml").write_text(config)
    _, words = page_of(run)
    shown = json.loads((run / "eval" / "finetune-photos.json").read_text())["trained"]
    assert shown["top1"] == 1 - 45 / 200
    for text in ("Fine-tuning report", "Top-1 77.5 %", "Top-5", "Mean over classes 77.5 %", "200 images", "Wilson"):
        assert text in words, text
    assert f"{100 * shown['top1_interval'][0]:.1f} to {100 * shown['top1_interval'][1]:.1f} %" in words
    for text in ("not measured", "Pre-training report", "encoder was frozen", "Nothing to compare", "pantomim.load("):
        assert text not in words, text
    assert f"pantomim finetune --config {run}/config.yaml --out NEW_RUN" in words
    assert f"pantomim predict {run} my_photos/ --out predictions.csv" in words


def test_a_matrix_of_few_classes(tmp_path):
    text, words = page_of(write_finetuned(tmp_path / "run"))
    table = re.search(r'<table class="confusion">.*?</table>', text, re.DOTALL)[0]
    rows = [re.findall(r'<td style="--depth: (\d+)%">(\d*)</td>', row) for row in table.split("<tr>")[2:]]
    assert [len(row) for row in rows] == [10] * 10
    assert rows[0][0] == ("60", "20")
    assert (rows[5][5], rows[5][6]) == (("45", "15"), ("15", "5"))
    assert rows[5][0] == ("0", "")
    assert "most frequent confusions" not in words


@pytest.mark.parametrize("num_classes", [25, 101])
def test_the_most_frequent_confusions_of_many_classes(tmp_path, num_classes):
    images, last = 100 + num_classes, num_classes - 1
    text, words = page_of(write_finetuned(tmp_path / "run", num_classes, images=images))
    assert 'class="confusion"' not in text
    assert f"class {last} class 0 {last} {100 * last / images:.0f} %" in words, "the most frequent one"
    assert "The 12 most frequent confusions" in words
    lowest, next_one = (
        words.index(f"class {number} {100 - 100 * number / images:.1f} %") for number in (last, last - 1)
    )
    assert lowest < next_one
    assert f"{num_classes - 24} more classes, with higher accuracy" in words
    assert text.count('role="listitem"') == 3 + num_classes


def test_hard_images_are_named_and_names_are_escaped(tmp_path):
    run = write_finetuned(tmp_path / "run")
    path = run / "eval" / "finetune-photos.json"
    values = json.loads(path.read_text())
    values["trained"]["hardest"][0] |= {"name": "<b>odd</b>.png", "true": "a & b", "probability": 0.987}
    path.write_text(json.dumps(values))
    text, words = page_of(run)
    assert "&lt;b&gt;odd&lt;/b&gt;.png" in text
    assert "a &amp; b" in text
    assert "99 %" in words


@pytest.mark.parametrize(("interval", "verdict"), [([0.01, 0.05], "beyond chance"), ([-0.01, 0.05], "can be chance")])
def test_another_run_on_the_same_images(tmp_path, interval, verdict):
    against = {"classifier": "runs/a-b", "difference": 0.02, "interval": interval, "only_this": 5, "only_other": 1}
    _, words = page_of(write_finetuned(tmp_path / "run", against=against))
    assert "Against runs/a-b on the same images: +2.0 points of top-1" in words
    assert verdict in words


def test_several_sets_and_other_results_on_one_page(tmp_path):
    run = write_finetuned(tmp_path / "run")
    write_finetuned(run, name="drawings")
    row = {"relative_error_increase": 0.5, "errors": [0.1, 0.2, 0.3, 0.4, 0.5]}
    own = {"noise": row, "blur": row | {"relative_error_increase": None}}
    scores = {"top1": 0.9, "own_corruptions": own, "shifted": {"ImageNet-C mCE": 0.612}}
    result = {"protocol": "robustness", "dataset": "photos", "trained": scores}
    write_json(run / "eval" / "robustness-photos.json", result)
    text, words = page_of(run)
    assert words.count("Classifier on") == 2
    assert "noise 10.0 % 20.0 % 30.0 % 40.0 % 50.0 % +50.0 %" in words
    assert "blur 10.0 % 20.0 % 30.0 % 40.0 % 50.0 % –" in words
    assert "not ImageNet-C" in words
    assert "ImageNet-C mCE 61.2 %" in words
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert "Linear probe on mnist" in words, "what is there of its encoder"


def test_scores_of_other_weights_are_marked(tmp_path):
    run = write_finetuned(tmp_path / "run", classifier_sha256="ee" * 32)
    _, words = page_of(run)
    assert "eval/finetune-photos.json was measured with other weights" in words


def test_without_an_evaluation_the_page_names_the_command(tmp_path):
    run = write_finetuned(tmp_path / "run")
    for result in (run / "eval").iterdir():
        result.unlink()
    _, words = page_of(run)
    assert f"pantomim evaluate classifier --classifier {run} --data mnist" in words


def test_a_split_is_named_unless_it_is_test(tmp_path):
    values = {"dataset": "photos", "data": {"test_split": "val"}}
    assert Classified("finetune-photos", values).data == "photos (val)"


def test_results_of_an_encoder_are_shown_as_before(tmp_path):
    run = write_run(tmp_path / "run")
    write_result(run, "finetune-mnist", trained=0.95)
    _, words = page_of(run)
    assert "Pre-training report" in words
    assert "Fine-tuning on mnist" in words


def test_the_same_training_from_scratch(tmp_path):
    against = {"classifier": "runs/a/scratch", "from_scratch": True, "top1": 0.755, "difference": 0.02}
    against |= {"interval": [-0.01, 0.05], "only_this": 5, "only_other": 1}
    _, words = page_of(write_finetuned(tmp_path / "run", against=against))
    assert "Top-1 from scratch 75.5 %" in words
    assert "Pre-training changes top-1 by +2.0 points, which can be chance (paired 95 % interval −1.0 to +5.0)" in words
    assert "the same training from scratch, in runs/a/scratch, reaches 75.5 %." in words
    assert "--compare" not in words


def test_how_much_pre_training_helped_is_there_to_be_asked(tmp_path):
    run = write_finetuned(tmp_path / "run")
    text = (run / "config.yaml").read_text().replace("mae_demo", "finetune_mae").replace("init: null", "init: runs/pre")
    (run / "config.yaml").write_text(text)
    _, words = page_of(run)
    assert f"pantomim finetune --config {run}/config.yaml --out {run} --compare" in words

"""The page of a run of segmentation: mean IoU beside what it is to be compared with, each class, pictures."""

import re

import pytest
from run_folder import CLASSES, COUNTS, write_segmentations, write_segmented

from pantomim.evaluate.segmenter import pixel_scores
from pantomim.report import make_report


def page_of(run):
    text = make_report(run).read_text(encoding="utf-8")
    body = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    return text, re.sub(
        r"\s+", " ", re.sub(r"<[^>]+>", " ", body).replace("\N{NO-BREAK SPACE}", " ").replace("&nbsp;", " ")
    )


def test_the_mean_iou_stands_beside_its_error_and_one_class_everywhere(tmp_path):
    run = write_segmented(tmp_path / "run")
    text, words = page_of(run)
    scores = pixel_scores(COUNTS, CLASSES)
    miou, error = 100 * scores["miou"], 100 * scores["miou_error"]
    for part in ("Segmentation report", "Segmenter on beach", f"Mean IoU {miou:.1f} ± {error:.1f} %", "On 2 images"):
        assert part in words, part
    assert "One class everywhere 24.2 %" in words, "145 of 200 pixels, in one of three classes"
    widths = [float(width) for width in re.findall(r'style="width: ([\d.]+)%"', text)]
    assert widths[:2] == pytest.approx([miou, 145 / 6], abs=0.01)
    assert "Linear probe on mnist" in words, "what is there of its encoder"
    assert f"pantomim predict {run} my_photos/ --out predictions/ --overlays" in words
    assert f"pantomim segment --config {run}/config.yaml --out NEW_RUN" in words
    for other in ("Pre-training report", "encoder was frozen", "pantomim.load("):
        assert other not in words, other


def test_classes_from_the_lowest_iou_on_with_their_share_and_escaped(tmp_path):
    text, words = page_of(write_segmented(tmp_path / "run"))
    assert words.index("sand 0.0 % 7.5 %") < words.index("sea") < words.index("sky 51.4 % 72.5 %")
    assert "&lt;b&gt;sea&lt;/b&gt;" in text


def test_images_true_classes_and_predictions_in_any_size(tmp_path):
    run = write_segmented(tmp_path / "run")
    write_segmentations(run, [(30, 40), (50, 20)])
    text, words = page_of(run)
    images = re.findall(
        r'<img src="data:image/png;base64,[^"]+" alt="([^"]*)">', text.partition("images that it has not seen")[2]
    )
    assert images[:3] == ["0.png", "True classes of 0.png", "Predicted classes of 0.png"]
    assert "sky" in re.search(r'<li style="--c: #800000">(.*?)</li>', text)[1]
    assert "Two images." in words
    (run / "analysis" / "segmentations.npz").write_bytes(b"cut")
    assert "analysis/segmentations.npz cannot be read" in page_of(run)[1]


@pytest.mark.parametrize(("interval", "verdict"), [([0.01, 0.05], "beyond chance"), ([-0.01, 0.05], "can be chance")])
def test_what_pre_training_changed_in_one_sentence(tmp_path, interval, verdict):
    against = {
        "segmenter": "runs/a/scratch",
        "from_scratch": True,
        "miou": 0.331,
        "difference": 0.02,
        "interval": interval,
    }
    _, words = page_of(write_segmented(tmp_path / "run", against=against))
    assert "From scratch 33.1 %" in words
    assert re.search(
        rf"Pre-training changes mean IoU by \+2.0 points, which (is )?{verdict} \(paired 95 % interval", words
    )
    assert "in runs/a/scratch, reaches 33.1 %." in words


def test_another_run_on_the_same_images(tmp_path):
    against = {
        "segmenter": "runs/b",
        "from_scratch": False,
        "miou": 0.3,
        "difference": -0.02,
        "interval": [-0.03, -0.01],
    }
    _, words = page_of(write_segmented(tmp_path / "run", against=against))
    assert (
        "Against runs/b on the same images: −2.0 points of mean IoU (paired 95 % interval −3.0 to −1.0). It is" in words
    )
    assert "right here alone" not in words
    assert "From scratch" not in words


def test_without_an_evaluation_the_page_names_the_command(tmp_path):
    run = write_segmented(tmp_path / "run", segmenter_sha256="ee" * 32)
    assert "eval/segment-beach.json was measured with other weights" in page_of(run)[1]
    for result in (run / "eval").iterdir():
        result.unlink()
    _, words = page_of(run)
    assert f"pantomim evaluate segmenter --segmenter {run} --data mnist" in words

import base64
import html
import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from run_folder import row, write_json, write_metrics, write_pictures, write_result, write_run

from pantomim.config import to_dict
from pantomim.core.scales import scale_of
from pantomim.formats.native import save_encoder
from pantomim.masking.color_noise import ColorNoiseMasker
from pantomim.masking.noise import Noise
from pantomim.masking.random import RandomMasker
from pantomim.nn.vit import EncoderConfig
from pantomim.report import make_report
from pantomim.report.page import masking, report_of

VOID = {"meta", "link", "img", "br", "hr", "input", "circle", "line", "path"}


class Page(HTMLParser):
    """Collects text, tags and attributes, and fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words).replace("\N{NO-BREAK SPACE}", " "))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def page_of(run, **options) -> Page:
    return Page(make_report(run, **options).read_text(encoding="utf-8"))


def picture(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


def test_the_page_lies_in_the_run_folder_and_is_whole_html(run):
    assert make_report(run) == run / "report.html"
    assert page_of(run).all("main") == [{}]


def test_nothing_is_loaded_from_elsewhere(run):
    text = make_report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"https?://|@import|url\(", text)
    assert not page.all("script")
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:"), f"{tag} {name}"


def test_the_numbers_are_there(run):
    text = page_of(run).text
    for number in (
        "93.1 %", "80.1 %", "85.2 %", "13.0 points above", "7.9 points above", "71.1 %", "−22.2", "+7.9",  # scores
        "60 steps", "32 images each", "seed 7", "8 × 12", "6 patches of 4 × 4", "75 % masked",  # what was run
        "ViT, 24 wide, 3 deep", "base learning rate 0.0015", "torch 2.11.0", "Imaginary CPU", "ab12ab12",
        "50 s", "64 images/s", "explains 37 %", "0123456789abcdef",
    ):  # fmt: skip
        assert number in text, number


def test_commands_name_the_run(run):
    text = page_of(run).text
    assert f"pantomim pretrain --config {run}/config.yaml --out NEW_RUN" in text
    assert f"pantomim.load('{run}')" in text


def test_bars_are_as_long_as_the_scores(run):
    widths = re.findall(r"style=\"width: ([\d.]+)%", make_report(run).read_text(encoding="utf-8"))
    assert widths[:3] == ["93.12", "80.14", "85.23"]


def test_every_table_of_results_can_be_saved(run):
    page = make_report(run).read_text()
    results = page[page.index('<h2 id="results">') : page.index('<h2 id="meaning">')]
    assert results.count("<table") == results.count('.csv" href') == results.count('.tex" href') > 0


def test_every_picture_and_chart_has_a_text_and_every_table_headers(run):
    page = page_of(run)
    assert all(image["alt"] for image in page.all("img"))
    assert all(chart["aria-label"] for chart in page.all("svg") if chart.get("role") == "img")
    assert {header.get("scope") for header in page.all("th")} == {"col", "row"}


def test_pictures_are_kept_pixel_by_pixel_and_masked_patches_are_transparent(run):
    images = page_of(run).all("img")
    with np.load(run / "analysis" / "reconstructions.npz") as arrays:
        original, pasted, mask = arrays["original"], arrays["pasted"], arrays["mask"]
    assert len(images) == 3 * len(original)
    for index in range(len(original)):
        first, masked, reconstruction = (picture(image["src"]) for image in images[3 * index : 3 * index + 3])
        assert np.array_equal(first, original[index, ..., 0])
        assert np.array_equal(reconstruction, pasted[index, ..., 0])
        assert np.array_equal(masked[..., 1] == 0, np.kron(mask[index], np.ones((4, 4), dtype=bool)))
        assert np.array_equal(masked[..., 0], original[index, ..., 0])


@pytest.mark.parametrize(("size", "layout"), [((8, 12), "triplets crisp"), ((96, 128), "triplets"), ((256, 256), "triplets large")])  # fmt: skip  # noqa: E501
def test_small_pictures_are_enlarged_crisply_and_large_ones_get_a_row(run, size, layout):
    write_pictures(run, channels=3, size=size)
    assert layout in [element.get("class") for element in page_of(run).all("div")]


# ---------------------------------------------------------------------------------------------------- Missing parts
MISSING = {
    "environment.json": "base learning rate",
    "finished.json": "Training is not finished: the last logged step is 60 of 60",
    "encoder.json": "pantomim.load",
    "encoder.safetensors": "ViT, 24 wide",
    "metrics.jsonl": "No step has been logged yet",
    "analysis/reconstructions.npz": "No reconstructions yet",
    "eval/linear-mnist.json": "k-nearest neighbours",
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_file_leaves_the_rest(run, name):
    (run / name).unlink()
    text = page_of(run).text
    assert MISSING[name] in text
    assert "cannot be read" not in text


@pytest.mark.parametrize("name", [name for name in MISSING if name != "metrics.jsonl"])
def test_a_damaged_file_is_named_and_leaves_the_rest(run, name):
    (run / name).write_bytes(b"\x00{[")
    text = page_of(run).text
    assert f"{name} cannot be read" in text
    assert "mae_demo on mnist" in text


def test_a_run_that_has_just_started(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("recipe: mae\n")
    text = page_of(run).text
    assert "Training has not logged a step yet" in text
    assert f"pantomim evaluate linear --encoder {run}" in text
    assert f"pantomim report {run}" in text


def test_warnings_of_a_run_that_is_not_complete_are_those_of_its_last_checkpoint(run):
    for step, words in ((20, "a zebra"), (40, "few codes used")):
        path = run / "checkpoints" / f"step-{step:08d}" / "checkpoint.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"step": step, "progress": {"warnings": [words]}}))
    assert "few codes used" not in make_report(run).read_text()
    (run / "finished.json").unlink()
    text = make_report(run).read_text()
    assert "While training: few codes used" in text
    assert "a zebra" not in text


def test_no_run_folder_at_all_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"report\.run must be a run folder; .* no config\.yaml"):
        make_report(tmp_path)


def test_a_torn_last_line_and_repeated_steps_do_not_matter(run):
    write_metrics(run, [row(1), row(2, loss=9.0), row(2), row(3)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    chart = next(svg for svg in page_of(run).all("svg") if svg.get("role"))["aria-label"]
    assert "1.4 at step 1" in chart
    assert "at step 3" in chart
    assert "highest 1.4" in chart


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_steps_without_a_number_are_gaps(run, bad):
    write_metrics(run, [row(step, loss=bad if step in (1, 7, 60) else 0.5, images_per_s=bad) for step in range(1, 61)])
    text = make_report(run).read_text(encoding="utf-8")
    page = Page(text)
    paths = [path["d"] for path in page.all("path")]
    assert paths
    assert not any("nan" in path or "inf" in path for path in paths)
    assert paths[0].count("M") == 2, "the line is broken at step 7"
    assert "Speed" not in page.text


def test_only_non_finite_losses(run):
    write_metrics(run, [row(1, loss=math.nan), row(2, loss=math.nan)])
    assert "Learning rate" in page_of(run).text


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_not_the_best(run, score):
    write_result(run, "linear-mnist", trained=score, untrained=0.5, pixels=0.6)
    text = page_of(run).text
    assert "not a number" in text
    assert "there is no score of the trained encoder" in text


def test_one_logged_step(run):
    write_metrics(run, [row(1)])
    assert page_of(run).all("svg")


# ------------------------------------------------------------------------------------------------------------ Names
def test_what_users_write_is_escaped(tmp_path):
    evil = "<img src=http://evil onerror=alert(1)>"
    run = write_run(tmp_path / "<b>run & co", source=f"{evil}&amp;", recipe="<script>alert('x')</script>")
    write_result(run, "knn-x", trained={"top1": 0.5, "top1_<b>view</b>": 0.5}, untrained={"top1": 0.4})
    write_json(run / "eval" / "knn-x.json", {"protocol": evil, "dataset": evil, "trained": {"top1": 0.5, f"top1_{evil}": 0.1}})  # fmt: skip  # noqa: E501
    write_json(run / "environment.json", {evil: evil, "cpu": evil, "packages": {"torch": evil, "pantomim": evil}})
    page = page_of(run)
    assert not page.all("script")
    assert not page.all("b") or all(set(attributes) == set() for attributes in page.all("b"))
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert "<script>alert('x')</script> on" in page.text
    assert evil in page.text


def test_a_path_with_blanks_is_quoted_in_commands(tmp_path):
    run = write_run(tmp_path / "my run")
    assert f"--config '{run}/config.yaml'" in page_of(run).text


# -------------------------------------------------------------------------------------------------------- Headlines
def test_the_linear_probe_comes_first_and_another_one_on_request(run):
    assert page_of(run).text.index("Linear probe on mnist") < page_of(run).text.index("k-nearest neighbours on mnist")
    text = page_of(run, headline="knn-mnist").text
    assert text.index("k-nearest neighbours on mnist") < text.index("Linear probe on mnist")
    with pytest.raises(ValueError, match=r"report\.headline must name a file of .*; got 'x'\. It has .*knn-mnist"):
        make_report(run, headline="x")


def test_an_evaluation_of_other_weights_is_named(run):
    assert "other weights" not in page_of(run).text
    values = json.loads((run / "eval" / "knn-mnist.json").read_text())
    write_json(run / "eval" / "knn-mnist.json", {**values, "encoder_sha256": "0" * 64})
    assert "eval/knn-mnist.json was measured with other weights" in page_of(run).text


def test_where_the_time_went_adds_up(run):
    text = page_of(run).text
    # 60 steps logged, the first one not timed: 59 of half a second, a tenth of it waiting; 50 s in all
    assert "Waiting for data 3 s, 6 %" in text
    assert "Computing steps 26 s, 53 %" in text
    assert "Starting, first step, saving, held-out images 20 s, 41 %" in text


@pytest.mark.parametrize(
    ("masker", "words"),
    [
        (RandomMasker(), "75 % masked at random"),
        (ColorNoiseMasker(noise=Noise("green"), ratio=0.6), "60 % masked by green noise"),
        (ColorNoiseMasker(bank="theirs.npz"), "75 % masked by theirs.npz"),
    ],
)
def test_how_patches_were_masked_is_said(masker, words):
    assert masking(to_dict(masker)) == words


def test_without_a_masker_nothing_is_masked():
    assert masking({}) == ""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"position": "none", "relative_position": "shared", "attention_bias": "qv", "layer_scale": 0.1},  # BEiT's
        {"position": "sincos_rows_first", "attention_bias": "qv", "layer_scale": 0.1},  # CAE's
        {"relative_position": "blocks", "attention_bias": "qv"},  # SimMIM's, data2vec's
        {"layer_scale": 0.1},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_lines_for_timm_work_or_are_left_out(run, changes):
    encoder = EncoderConfig(image_size=(8, 8), patch_size=4, width=12, depth=1, heads=2, **changes).build().eval()
    save_encoder(run, encoder, scale=scale_of("uint8"), recipe="x")
    found = re.search("timm alone:</p>\\s*<pre><code>(.*?)</code>", make_report(run).read_text(), re.DOTALL)
    assert (found is None) == (changes == {"layer_scale": 0.1}), "timm has no such network"
    if found:
        names = {"images": torch.rand(2, 3, 8, 8)}
        exec(html.unescape(found[1]), names)
        torch.testing.assert_close(names["features"][:, 1:], encoder(names["images"]).patches, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "finished", "words"),
    [
        ("started", False, "went from 0.9 (step 0) to 0.9. "),
        ("overfitted", True, "It was lowest, 0.5, at step 30: what came later fits the training images alone."),
        ("rising", True, "It was lowest, 0.5, at step 30. "),
        ("moving", True, "What is predicted moves with the encoder"),
        ("not finite", False, "The loss or a gradient of step 61 was infinite or NaN"),
    ],
)
def test_what_the_losses_say(tmp_path, kind, finished, words):
    run = write_run(tmp_path / "run")
    for file in (run / "eval").iterdir():
        file.unlink()
    write_json(run / "data.json", {"facts": {"num_classes": None}})
    (run / "held_out_images.txt").write_text("a.png\n" * 40)
    if not finished:
        (run / "finished.json").unlink()
    rows = [row(step, held_out_loss=loss) for step, loss in ((1, 0.9), (30, 0.5), (60, 0.8))]
    if kind == "started":
        rows = [{"step": 0, "held_out_loss": 0.9}]
    if kind == "rising":
        rows[-1]["loss"] = 5.0
    if kind == "moving":
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["method"]["teacher"] = {"source": "ema"}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    if kind == "not finite":
        (run / "failure").mkdir()
        (run / "failure" / "step-00000061-process-0.safetensors").write_bytes(b"")
    write_metrics(run, rows)
    text = re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", report_of(run)))
    assert words in text


def test_the_page_of_a_tokenizer_has_its_own_commands(tmp_path):
    run = write_run(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["method"] = {"kind": "dvae"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for file in [*(run / "eval").iterdir(), run / "encoder.json", run / "encoder.safetensors", run / "finished.json"]:
        file.unlink()
    page = report_of(run)
    assert "pantomim tokenizer train --config" in page
    assert "pantomim pretrain cae --tokenizer" in page
    assert "evaluate linear" not in page
    assert "Use the encoder" not in page

"""The report in a real browser: it renders, loads nothing, complains of nothing, and fits a telephone."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_folder import write_finetuned, write_pictures, write_result, write_run, write_segmentations, write_segmented

from pantomim.report import make_report
from pantomim.report.compare import make_comparison, read_arms

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt-get install chromium)")

# What the page says of itself once it is there. Its own policy forbids scripts: a copy without that policy is measured.
MEASURE = """
<pre id="measured"></pre><script>
addEventListener("load", () => {
  const root = document.documentElement, images = [...document.images];
  const charts = [...document.querySelectorAll("svg[role=img]")].filter((svg) => svg.getClientRects().length > 0);
  document.getElementById("measured").textContent = JSON.stringify({
    overflow: root.scrollWidth - root.clientWidth, width: root.clientWidth,
    natural: images.map((image) => [image.naturalWidth, image.naturalHeight]),
    shown: images.map((image) => image.getBoundingClientRect().width),
    charts: charts.map((svg) => svg.getBoundingClientRect().width),
    tracks: [...document.querySelectorAll(".bar .track")].map((track) => track.getBoundingClientRect().width),
    loaded: performance.getEntriesByType("resource").map((entry) => entry.name),
    background: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
  });
});
</script>"""


def chromium(tmp_path: Path, page: Path, *options: str) -> subprocess.CompletedProcess:
    profile = tmp_path / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--no-first-run", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        f"--user-data-dir={profile}", "--enable-logging=stderr", *options, page.as_uri(),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in result.stderr, result.stderr
    return result


def screenshot(tmp_path: Path, page: Path, *options: str) -> np.ndarray:
    file = tmp_path / "page.png"
    chromium(tmp_path, page, f"--screenshot={file}", "--window-size=1000,1600", *options)
    return np.asarray(Image.open(file).convert("RGB"))


def measure(tmp_path: Path, report: Path, width: int | None = None, *options: str) -> dict:
    """Layout of the page; `width` below 500 pixels needs a frame, as windows are not made narrower."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", report.read_text(encoding="utf-8"))
    copy = tmp_path / "copy.html"
    if width is None:
        copy.write_text(text.replace("</body>", MEASURE + "</body>"), encoding="utf-8")
        dom = chromium(tmp_path, copy, "--dump-dom", "--window-size=1000,1600", *options).stdout
    else:
        inner = html.escape(text.replace("</body>", MEASURE + "</body>"))
        out = """<pre id="outer"></pre><script>
          addEventListener("load", () => {
            const inner = document.querySelector("iframe").contentDocument;
            document.getElementById("outer").textContent = inner.getElementById("measured").textContent;
          });
          </script>"""
        frame = f'<!doctype html><iframe style="border:0;width:{width}px;height:900px" srcdoc="{inner}"></iframe>{out}'
        copy.write_text(frame, encoding="utf-8")
        dom = chromium(tmp_path, copy, "--dump-dom", *options).stdout
        dom = dom[dom.index('id="outer"') :]
    found = re.search(r'<pre id="(?:measured|outer)">(.*?)</pre>|id="outer">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, dom[-2000:]
    return json.loads(html.unescape(found[1] or found[2]))


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    return make_report(write_run(tmp_path_factory.mktemp("report") / "run"))


def test_the_page_is_drawn_without_complaint(tmp_path, report):
    picture = screenshot(tmp_path, report)
    light = picture.reshape(-1, 3)
    assert picture.shape == (1600, 1000, 3)
    assert len(np.unique(light, axis=0)) > 100, "blank, or nearly so"
    blue = (np.abs(light.astype(int) - (0x00, 0x67, 0xA8)).sum(axis=1) < 12).sum()
    assert blue > 5_000, "the bar of the trained encoder"
    assert 0.5 < (light.min(axis=1) > 245).mean() < 0.97


def test_images_and_charts_are_there_and_nothing_is_loaded(tmp_path, report):
    page = measure(tmp_path, report)
    assert page["natural"] == [[12, 8]] * 12
    assert min(page["shown"]) > 100, "small pictures are enlarged"
    assert len(page["charts"]) == 3
    assert min(page["charts"]) > 350
    assert page["loaded"] == []
    assert page["overflow"] == 0


@pytest.mark.parametrize(("width", "size"), [(360, (8, 12)), (360, (256, 256)), (700, (8, 12))])
def test_a_narrow_page_does_not_run_over(tmp_path, width, size):
    run = write_run(tmp_path / "a_run_with_quite_a_long_name_that_has_no_place_to_break_it_at_all")
    write_pictures(run, channels=3, size=size)
    page = measure(tmp_path, make_report(run), width)
    assert page["width"] == width
    assert page["overflow"] == 0
    assert len(page["charts"]) == 3
    assert max(page["shown"]) <= width


@pytest.mark.parametrize(("width", "num_classes"), [(360, 10), (360, 101), (None, 20), (None, 101)])
def test_the_page_of_a_classifier_does_not_run_over(tmp_path, width, num_classes):
    page = measure(tmp_path, make_report(write_finetuned(tmp_path / "run", num_classes, name="a" * 80)), width)
    assert page["overflow"] == 0
    assert page["loaded"] == []


@pytest.mark.parametrize("width", [360, None])
def test_the_page_of_a_segmenter_does_not_run_over(tmp_path, width):
    run = write_segmented(tmp_path / "run", name="a" * 80, classes=("sky", "w" * 60, "a class of several long words"))
    write_segmentations(run, [(300, 200), (200, 300), (20, 30)])
    page = measure(tmp_path, make_report(run), width)
    assert page["overflow"] == 0
    assert page["loaded"] == []


def test_dark_mode_turns_page_and_ink_around(tmp_path, report):
    light = measure(tmp_path, report)
    dark = measure(tmp_path, report, None, "--blink-settings=preferredColorScheme=0")

    def brightness(color: str) -> float:
        return sum(map(float, re.findall(r"[\d.]+", color)[:3])) / 3

    assert brightness(light["background"]) > 240 > 60 > brightness(light["ink"])
    assert brightness(dark["background"]) < 60 < 200 < brightness(dark["ink"])


def test_a_run_that_has_just_begun_is_drawn_too(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("recipe: mae\n")
    page = measure(tmp_path, make_report(run))
    assert page["natural"] == []
    assert page["charts"] == []
    assert page["overflow"] == 0


def test_bars_have_one_scale(tmp_path):
    run = write_run(tmp_path / "run")
    spread = {"top1": 0.785, "top1_std": 0.031}
    write_result(run, "linear-mnist", trained=spread, untrained=0.3, pixels={"top1": 0.732, "top1_std": 0.0213})
    tracks = measure(tmp_path, make_report(run))["tracks"]
    assert len(tracks) == 3
    assert max(tracks) - min(tracks) < 0.1


@pytest.mark.parametrize("width", [360, None])
def test_the_page_of_twelve_runs_does_not_run_over(tmp_path, width):
    paths = [write_run(tmp_path / f"a_run_with_a_long_name_{n}", recipe=f"recipe{n}") for n in range(12)]
    arms, notes = read_arms(paths)
    drawn = {arm.first.path: arm.first.pictures for arm in arms}
    page = measure(tmp_path, make_comparison(arms, tmp_path / "compare.html", drawn, notes), width)
    assert page["overflow"] == 0
    assert page["loaded"] == []
    assert len(page["natural"]) == 4 + 12 * 2 * 4

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from pantomim.analysis.masks import MaskSurvey, Pattern, Photo, survey
from pantomim.masking import STRATEGIES
from pantomim.masking.random import RandomMasker
from pantomim.report.mask_gallery import (
    Gallery,
    draw_poster,
    gray,
    heat,
    mask_svg,
    numbers,
    render,
    usual_counts,
    veil_svg,
)

CORNER = np.array([[True, False, False], [False, False, False]])


def random_masks(name="random", grid=(4, 6), pattern=False) -> MaskSurvey:
    found = survey(name, RandomMasker(ratio=0.5), grid, num=30, seed=0)
    values = np.random.default_rng(0).random((12, 18))
    shown = Pattern(values, 4, 6, found.visible[0]) if pattern else None
    return MaskSurvey(name, found.visible, found.spectrum, found.statistics, found.left_out, shown)


def gallery(*surveys: MaskSurvey, photos=(), samples=3) -> Gallery:
    return Gallery(surveys, 0.5, 0, samples, photos, "pantomim masks random")


def photo(name="a.png") -> Photo:
    return Photo(name, np.full((8, 12, 3), 90, dtype=np.uint8))


def test_masks_and_veils_are_each_others_opposite():
    assert re.findall(r'd="([^"]*)"', mask_svg(CORNER, "x")) == ["M0 0h1v1h-1z"]
    assert re.findall(r'd="([^"]*)"', veil_svg(CORNER, "x")) == ["M1 0h2v1h-2zM0 1h3v1h-3z"]
    assert 'viewBox="0 0 3 2"' in mask_svg(CORNER, "x")
    assert 'aria-label="&lt;b&gt;"' in veil_svg(CORNER, "<b>")


def test_fields_and_shares_become_pictures():
    assert gray(np.array([[-2.0, 0.0, 2.0]])).ravel().tolist() == [0, 128, 255]
    assert gray(np.full((1, 2), 3.0)).ravel().tolist() == [0, 0]
    assert heat(np.array([[0.0, 1.0]]), (9, 8, 7)).tolist() == [[[9, 8, 7, 0], [9, 8, 7, 255]]]


def test_full_colour_is_twice_the_usual_visibility_whatever_is_shown_beside():
    found = random_masks()
    often = MaskSurvey(found.name, np.ones_like(found.visible), found.spectrum, found.statistics, 0, None)
    assert Gallery([found, often], 0.75, 0, 3, (), "").brightest == 0.5
    assert Gallery([found], 0.25, 0, 3, (), "").brightest == 1.0
    assert heat(np.array([[2.0]]), (9, 8, 7)).tolist() == [[[9, 8, 7, 255]]]
    assert "full colour means 50 % or more" in render(Gallery([found], 0.75, 0, 3, (), ""))


def test_the_table_tells_mean_and_std_and_exact_counts_as_such():
    found = random_masks()
    row = numbers(found)
    assert row[0] == ("12", "")
    assert row[1] == (f"{found.statistics.num_clusters.mean():.1f}", f"±{found.statistics.num_clusters.std():.1f}")


def test_the_page_has_every_strategy_and_needs_nothing_else():
    page = render(gallery(random_masks("random"), random_masks("green", pattern=True)))
    assert "12 of 24 patches on a grid of 4 × 6" in page
    for name in ("random", "green"):
        assert STRATEGIES[name].sentence in page
        assert STRATEGIES[name].colour in page
    assert STRATEGIES["random"].drawn in page  # why there is no pattern
    assert page.count('class="piece"') == 1
    assert page.count('class="mask"') == 2 * 3 + 1
    assert "On your picture" not in page
    assert not re.search(r"https?://|@import|<script|url\((?!data:)", page)
    uris = r'download="([^"]*)" href="data:[^,]*;base64,([^"]*)"'
    files = {name: base64.b64decode(data).decode() for name, data in re.findall(uris, page)}
    assert set(files) == {"power-spectrum-of-the-masks.svg", "what-is-left-visible.csv", "what-is-left-visible.tex"}
    assert ".chart .spectrum {" in files["power-spectrum-of-the-masks.svg"]
    lines = files["what-is-left-visible.csv"].splitlines()
    assert lines[0].startswith("strategy,masked patches,")
    assert [line.split(",")[:2] for line in lines[1:]] == [["random", "12"], ["green", "12"]]


def test_one_photo_lies_under_several_masks_and_each_of_several_under_one():
    assert [index for _, index in gallery(random_masks(), photos=[photo()]).overlays] == [0, 1, 2]
    several = gallery(random_masks(), photos=[photo("a.png"), photo("<b>.png")])
    assert [(shown.name, index) for shown, index in several.overlays] == [("a.png", 0), ("<b>.png", 1)]
    page = render(several)
    assert page.count('class="veil"') == 2
    assert page.count("data:image/jpeg;base64,") == 2
    assert "&lt;b&gt;.png" in page
    assert "<b>.png" not in page


def test_a_gallery_says_which_masks_it_left_out():
    found = random_masks("block_beit")
    odd = MaskSurvey(found.name, found.visible, found.spectrum, found.statistics, 1, None)
    assert "1 mask of block_beit hides nothing or everything" in render(gallery(odd))
    assert "nothing or everything" not in render(gallery(found))


def test_the_counts_of_all_strategies_make_one_phrase():
    assert usual_counts([random_masks(), random_masks("block")]) == "12"
    assert usual_counts([random_masks(grid=(2, 2)), random_masks(grid=(4, 4))]) == "2 to 8"


@pytest.mark.parametrize("grid", [(4, 6), (2, 12), (12, 2)])
def test_the_poster_is_a_picture_with_every_colour(grid):
    surveys = [random_masks("red", grid, pattern=grid == (4, 6)), random_masks("block", grid)]
    data = draw_poster(surveys, 2, [(Photo("a", np.zeros((grid[0] * 3, grid[1] * 3, 1), np.uint8)), 0)], 1.0)
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).reshape(-1, 3)
    for name in ("red", "block"):
        assert (pixels == STRATEGIES[name].rgb).all(axis=1).sum() > 1000, name

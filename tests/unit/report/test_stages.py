"""The page of a chain shows what was measured in the blocks of each stage's encoder, side by side."""

import re

import numpy as np
import yaml
from run_folder import write_result, write_run

from pantomim.analysis.block_facts import BlockFacts, write_block_facts
from pantomim.report.stages import make_stages_report, side_by_side

ABOUT = {"source": "mnist", "dataset": "mnist", "split": "val", "images": 64, "seed": 0}


def facts(kind, value, spec="", **changes):
    encoder = {"name": "x", "depth": 2, "spec": str(spec)}
    arrays = {
        "spectrum": {"shares_0": np.full((2, 5), value)},
        "attention-distance": {
            "distance_0": np.full((2, 3), value),
            "prefix_share_0": np.zeros((2, 3)),
            "uniform_0": np.array(9.0),
        },
        "cka": {"cka": np.eye(2)},
    }[kind]
    return BlockFacts(kind, arrays, {**ABOUT, "analysis": kind, "encoders": [encoder], "batch_size": 64, **changes})


def test_stages_measured_on_the_same_images_are_drawn_together():
    found = [[facts("spectrum", 0.1), facts("cka", 0)], [facts("spectrum", 0.2), facts("cka", 0)]]
    joined, *alone = side_by_side(found)
    assert joined.names == ["stage 0", "stage 1"]
    assert [float(joined.of("shares", number)[0, 0]) for number in (0, 1)] == [0.1, 0.2]
    assert [single.names for single in alone] == [["stage 0"], ["stage 1"]]


def test_stages_measured_on_other_images_are_drawn_apart():
    found = [[facts("spectrum", 0.1)], [facts("spectrum", 0.2, seed=1)], [facts("spectrum", 0.3)]]
    assert [each.names for each in side_by_side(found)] == [["stage 0", "stage 2"], ["stage 1"]]


def test_the_page_shows_them(tmp_path):
    (tmp_path / "stages.yaml").write_text(yaml.safe_dump({"stages": 2, "reinit": "full"}))
    for number in (0, 1):
        write_run(tmp_path / f"stage-{number}")
    assert "Inside the encoders" not in make_stages_report(tmp_path).read_text()
    for number in (0, 1):
        folder = tmp_path / f"stage-{number}"
        for kind in ("spectrum", "attention-distance"):
            write_block_facts(facts(kind, 0.1 + number, folder), folder / "analysis" / f"{kind}.html")
    page = make_stages_report(tmp_path).read_text()
    for number in (0, 1):
        assert f"Spectrum of patch tokens: stage {number}" in page
        assert f"How far the heads look: stage {number}" in page


def test_it_opens_with_its_finding_and_has_a_dot_a_stage(tmp_path):
    (tmp_path / "stages.yaml").write_text(yaml.safe_dump({"stages": 2, "reinit": "full"}))
    for number, score in enumerate((0.71, 0.93)):
        run = write_run(tmp_path / f"stage-{number}")
        write_result(run, "knn-mnist", trained=score, untrained=0.6, pixels=0.9)
    page = make_stages_report(tmp_path).read_text()
    assert re.search(r'class="lead">[^<]*mnist: stage \d', page)
    assert "k-nearest neighbours, top-1 accuracy, mnist: stage 1 is ahead" in page
    assert re.findall(r'<text class="name"[^>]*>([^<]*)</text>', page)[:2] == ["stage 0", "stage 1"]

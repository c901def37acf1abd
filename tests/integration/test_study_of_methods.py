"""A study whose arms are different methods that use each other's runs: order, waiting, failures, and the page."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import SoftFileLease
from study_plan import tiny_study
from tiny import DECODER, ENCODER, tiny_images

from pantomim.config import to_dict
from pantomim.formats import load_encoder
from pantomim.study import run as running
from pantomim.study.cells import Study
from pantomim.study.page import write_tables
from pantomim.study.run import cell_folder, is_finished, run_study, state

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("study_of_methods")]  # six arms of four methods, trained once

TOKENS = {"target": {"tokenizer": "{run:tokenizer}"}}
SIZES = {"width": 4, "code_width": 4, "vocabulary": 8}
NETWORKS = {"encoder": to_dict(ENCODER), "decoder": to_dict(DECODER)}
SMALL = {"encoder": {"image_size": [16, 16], "width": 16, "depth": 2, "heads": 2}, "regressor": {"depth": 1}}


def cae(weight: float) -> dict[str, Any]:
    return {"base": "cae_micro_cifar10", "method": {**SMALL, **TOKENS, "align_weight": weight}}


ARMS = {
    "tokenizer": {"base": "dvae_micro_cifar10", "seeds": [0], "method": {"sizes": SIZES, "image_size": [16, 16]}},
    "cae": cae(2.0),
    "without": cae(0.0),
    "mae": {"method": NETWORKS},
    "drawn": {"method": NETWORKS, "duration": {"steps": 0}},
    "on": {"method": NETWORKS, "init": "{run:mae}"},
}
COMPARE = {
    "metrics": ["knn.top1", "one.top1 - knn.top1", "log.loss_align", "alignment.explained"],
    "reference": "mae",
    "contrasts": ["cae - without"],
    "groups": {"first": ["mae", "drawn"], "second": ["cae", "without", "on"]},
}
OPTIONS: dict[str, Any] = {
    "overrides": {
        "data": {"images": None},
        "optim": {"warmup": {"steps": 1}},
        "batch_size": 16,
        "runtime": {"tracker": "none", "device": "cpu", "threads": 1},
    },
    "arms": ARMS,
    "compare": COMPARE,
    "evaluations": {
        "knn": {"protocol": "knn", "data": "{data}", "device": "cpu"},
        "one": {"protocol": "knn", "data": "{other}", "device": "cpu", "test_images": 8},
    },
    "analyses": ["alignment", "attention-distance", "spectrum"],
    "pictures": 2,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_images(tmp_path_factory.mktemp("data") / "tiny.npz", num_images=60)


@pytest.fixture(scope="module")
def done(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    folder = tmp_path_factory.mktemp("done")
    study = tiny_study(folder, source, **OPTIONS)
    assert run_study(study, folder / "out") == []
    write_tables(study, folder / "out")
    return study, folder / "out"


def chain(folder: Path, source: Path, **arms: Any) -> Study:
    """MAE, and arms around it, at one seed."""
    evaluations = {"knn": {"protocol": "knn", "data": "{other}", "device": "cpu"}}
    compare = {"metrics": ["knn.top1"], "reference": "mae"}
    arms = {"mae": {"method": NETWORKS}, **arms}
    changes = {"arms": arms, "compare": compare, "evaluations": evaluations, "analyses": [], "pictures": 0}
    return tiny_study(folder, source, **OPTIONS | changes | {"seeds": [0]})


def test_arms_use_the_runs_of_others(done):
    study, out = done
    assert {state(cell, out) for cell in study.cells} == {"finished"}
    tokenizer = cell_folder(study.of("tokenizer")[0], out)
    assert not (tokenizer / "eval").exists(), "a tokenizer is not scored"
    for cell in study.of("cae"):
        config = yaml.safe_load((cell_folder(cell, out) / "config.yaml").read_text())
        assert config["method"]["target"]["tokenizer"] == str(tokenizer.resolve())
    for on, mae in zip(study.of("on"), study.of("mae"), strict=True):
        config = yaml.safe_load((cell_folder(on, out) / "config.yaml").read_text())
        assert config["init"] == str(cell_folder(mae, out).resolve())
    assert str(out) not in (out / "study.yaml").read_text()


def test_an_arm_of_no_steps_is_the_encoder_as_drawn(done):
    study, out = done
    folder = cell_folder(study.of("drawn")[0], out)
    finished = json.loads((folder / "finished.json").read_text())
    assert (finished["steps"], finished["loss"]) == (0, None)
    drawn, trained = load_encoder(folder), load_encoder(cell_folder(study.of("mae")[0], out))
    assert drawn.config == trained.config
    assert not drawn.patch_embed.proj.weight.equal(trained.patch_embed.proj.weight)


def test_the_table_holds_helpers_contrasts_groups_and_logs(done):
    study, out = done
    table = json.loads((out / "table.json").read_text())
    rows = {row["name"]: row for row in table["rows"]}
    assert "tokenizer" not in rows
    (helper,) = table["helpers"]
    assert (helper["name"], helper["method"], helper["users"]) == ("tokenizer", "dvae", ["cae", "without"])
    assert "loss" in helper["logged"]
    assert "lr" not in helper["logged"]
    assert rows["cae"]["scores"]["log.loss_align"]["mean"] > 0
    assert rows["without"]["scores"]["log.loss_align"] is None, "nothing is logged that is not trained"
    assert rows["mae"]["scores"]["alignment.explained"] is None
    explained = {name: rows[name]["scores"]["alignment.explained"]["by_seed"] for name in ("cae", "without")}
    assert explained["without"].keys() == {"0", "1"}, "and yet it is measured"
    (contrast,) = table["contrasts"]
    apart = [explained["cae"][seed] - explained["without"][seed] for seed in ("0", "1")]
    assert list(contrast["differences"]["alignment.explained"]["by_seed"].values()) == pytest.approx(apart)
    scores = [rows[name]["scores"]["knn.top1"]["by_seed"] for name in ("mae", "drawn")]
    among = table["groups"][0]["columns"]["knn.top1"]
    assert among["range"]["by_seed"]["0"] == pytest.approx(abs(scores[0]["0"] - scores[1]["0"]))
    assert table["groups"][1]["columns"]["alignment.explained"] is None
    one = [
        json.loads((cell_folder(study.of("mae")[0], out) / "eval" / f"{name}.json").read_text())
        for name in ("one", "knn")
    ]
    difference = rows["mae"]["scores"]["one.top1 - knn.top1"]["by_seed"]["0"]
    assert difference == pytest.approx(one[0]["trained"]["top1"] - one[1]["trained"]["top1"])


def test_the_page_shows_them(done):
    _, out = done
    markdown, page = (out / "table.md").read_text(), (out / "table.html").read_text()
    for text in (markdown, page):
        assert "cae − without" in text
        assert "tokenizer" in text
        assert "first" in text
    assert "alignment weight 2" in page
    assert "no alignment" in page
    assert page.count('<svg class="chart"') == 2 + 2 * 2, "scores and two analyses, of two groups"
    assert "without the regressor" in page
    assert page.count("Original of") == 2, "MAE's pictures"


def test_a_cell_waits_for_what_another_process_does_and_takes_it_over_if_that_stops(source, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "POLL_S", 0.05)
    monkeypatch.setattr(running, "LOOK_S", 0.05)
    study, out = chain(tmp_path, source, on={"method": NETWORKS, "init": "{run:mae}"}), tmp_path / "out"
    running.open_study(study, out)
    path, lasts = out / "cells" / f".{study.cells[0].name}.lease", running.LEASE_S
    lock = SoftFileLease(path, lease_duration=lasts, thread_local=False)
    lock.acquire()
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if "another process works on it" in text:
            lock.release()

    assert run_study(study, out, say=say) == []
    assert all(is_finished(cell, out) for cell in study.cells)
    assert sum("another process works on it" in text for text in said) == 1


def test_what_a_failed_cell_was_needed_for_is_not_started_and_said(source, tmp_path):
    broken = {"method": NETWORKS, "init": str(tmp_path / "no_such_run")}
    study = chain(tmp_path, source, broken=broken, user={"method": NETWORKS, "init": "{run:broken}"})
    out, said = tmp_path / "out", []
    lost = run_study(study, out, say=said.append)
    assert [cell.arm for cell in lost] == ["broken", "user"]
    assert [state(cell, out) for cell in study.cells] == ["finished", "failed", "not started"]
    assert any("02-user-seed0: not started, for it needs the run of 01-broken-seed0 (failed)" in text for text in said)
    write_tables(study, out)
    assert "01-broken-seed0 failed, and its run is needed by 02-user-seed0" in (out / "table.md").read_text()


def test_a_single_cell_does_not_start_without_what_it_needs(source, tmp_path):
    study, out = chain(tmp_path, source, on={"method": NETWORKS, "init": "{run:mae}"}), tmp_path / "out"
    said: list[str] = []
    assert [cell.arm for cell in run_study(study, out, index=1, say=said.append)] == ["on"]
    assert "needs the run of 00-mae-seed0 (not started)" in said[0]
    assert run_study(study, out, index=0) == []
    assert run_study(study, out, index=1) == []


def test_a_moved_study_is_resumed(source, tmp_path):
    study, out = chain(tmp_path, source, on={"method": NETWORKS, "init": "{run:mae}"}), tmp_path / "out"
    assert run_study(study, out) == []
    there = tmp_path / "elsewhere"
    shutil.move(out, there)
    (there / "cells" / f"{study.cells[1].name}.json").unlink()
    assert run_study(study, there) == []
    config = yaml.safe_load((cell_folder(study.cells[1], there) / "config.yaml").read_text())
    assert config["init"] == str(cell_folder(study.cells[0], there).resolve())

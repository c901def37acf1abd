"""`pantomim study` on a tiny set: cells run once, stopped ones are resumed, failures are shown, the numbers add up."""

import json
import os
import pickle
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import SoftFileLease, Timeout
from study_plan import tiny_study, write_plan
from tiny import tiny_images

from pantomim.cli import main
from pantomim.engine.stops import Interrupted
from pantomim.evaluate import Evaluation
from pantomim.report.spread import Spread
from pantomim.study import page
from pantomim.study import run as running
from pantomim.study.cells import Study
from pantomim.study.columns import show
from pantomim.study.page import write_tables
from pantomim.study.run import cell_folder, read_record, result_paths, run_study, state
from pantomim.study.table import findings, make_table

pytestmark = pytest.mark.xdist_group("study")  # one process makes what many look at


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_images(tmp_path_factory.mktemp("data") / "tiny.npz", num_images=60)


@pytest.fixture(scope="module")
def done(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """All cells, with pictures."""
    folder = tmp_path_factory.mktemp("done")
    study = tiny_study(folder, source, pictures=3)
    assert run_study(study, folder / "out") == []
    write_tables(study, folder / "out")
    return study, folder / "out"


def stamps(out: Path) -> dict[Path, int]:
    """When each file of the cells was written."""
    return {
        path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*") if path.suffix not in (".lock", ".lease")
    }


def test_all_cells_are_ordinary_runs_with_their_evaluations(done):
    study, out = done
    for cell in study.cells:
        folder = cell_folder(cell, out)
        assert (folder / "encoder.safetensors").is_file()
        assert [path.name for path in sorted((folder / "eval").iterdir())] == ["knn.json", "probe.json"]
        assert state(cell, out) == "finished"
        record = read_record(cell, out)
        assert record.steps == 4
        assert record.pretrain_s > 0
        assert record.s_per_step == pytest.approx(16 / record.images_per_s)
        assert record.evaluate_s.keys() == {"knn", "probe"}
    ratios = [read_record(cell, out).masks["ratio"] for cell in study.cells]
    assert ratios == [0.5, 0.75, 0.5, 0.75]


def test_a_finished_cell_is_never_run_again(done, monkeypatch):
    study, out = done
    before = stamps(out)
    monkeypatch.setattr(running, "pretrain", lambda *a: pytest.fail("trained again"))
    monkeypatch.setattr(Evaluation, "to_file", lambda *a: pytest.fail("evaluated again"))
    said = []
    assert run_study(study, out, say=said.append) == []
    assert stamps(out) == before
    assert len(said) == 4


def test_the_numbers_of_the_table_are_mean_std_and_paired_difference(done):
    study, out = done
    table = json.loads((out / "table.json").read_text())
    results = {
        cell.name: {n: json.loads(p.read_text()) for n, p in result_paths(cell, out).items()} for cell in study.cells
    }
    rows = {row["name"]: row for row in table["rows"]}
    assert list(rows) == ["half", "most", "same encoder, untrained", "raw pixels"]
    half = [results[name]["probe"]["trained"]["top1"] for name in ("00-half-seed0", "02-half-seed1")]
    most = [results[name]["probe"]["trained"]["top1"] for name in ("01-most-seed0", "03-most-seed1")]
    untrained = [results[name]["probe"]["untrained"]["top1"] for name in ("01-most-seed0", "03-most-seed1")]
    score = rows["half"]["scores"]["probe.top1"]
    assert score["mean"] == pytest.approx(sum(half) / 2)
    assert score["std"] == pytest.approx(abs(half[0] - half[1]) / 2**0.5)
    assert score["by_seed"] == {"0": half[0], "1": half[1]}
    apart = [a - b for a, b in zip(half, most, strict=True)]
    difference = rows["half"]["differences"]["probe.top1"]
    assert difference["mean"] == pytest.approx(statistics.fmean(apart))
    assert difference["std"] == pytest.approx(statistics.stdev(apart))
    assert rows["most"]["differences"] == {}
    assert rows["same encoder, untrained"]["scores"]["probe.top1"]["mean"] == pytest.approx(statistics.fmean(untrained))
    assert "untrained" not in results["00-half-seed0"]["knn"], "baselines are scored once"
    steps = [read_record(cell, out).s_per_step for cell in study.cells if cell.arm == "half"]
    assert rows["half"]["costs"]["s_per_step"]["mean"] == pytest.approx(statistics.fmean(steps))
    assert table["command"].startswith("pantomim study ")
    assert table["environments"][0]["packages"]["torch"]
    assert [cell["state"] for cell in table["cells"]] == ["finished"] * 4


def test_the_pages_say_what_was_run(done):
    study, out = done
    markdown, page = (out / "table.md").read_text(), (out / "table.html").read_text()
    table = make_table(study, out)
    for text in (markdown, page):
        assert "0, 1" in text, "seeds"
        assert study.command(out) in text.replace("&#39;", "'")
        assert table.environments[0]["packages"]["torch"] in text
        assert show(table.rows[0].scores["knn.top1"], "knn.top1", 2) in text
        assert all(sentence in text.replace("&#39;", "'") for sentence in findings(table))
        assert "same encoder, untrained" in text
        for cell in study.cells:
            record = read_record(cell, out)
            line = next(line for line in text.splitlines() if f"{cell.name}</th>" in line or f"| {cell.name} |" in line)
            times = [1000 * record.s_per_step, record.pretrain_s, *record.evaluate_s.values()]
            assert re.findall(r"\d+\.\d", line) == [f"{value:.1f}" for value in times]
    assert "not finished" not in markdown
    assert page.count("data:image/png") == 3 + 2 * 2 * 3, "originals once; masked and reconstructed for each arm"
    assert not re.search(r"(src|href)=\"(?!data:)", page), "the page needs no other file"
    assert "nothing: the recipe as it is" in page


def test_arms_whose_masks_depend_on_the_image_are_named(done, tmp_path, monkeypatch):
    study, out = done
    monkeypatch.setattr(page, "guided", lambda study: ["half"])
    shutil.copytree(out, tmp_path / "out")
    for path in write_tables(study, tmp_path / "out")[1:]:
        assert "half: masks depend on the image, and are not described here." in path.read_text()


@pytest.mark.slow
def test_a_stopped_study_is_resumed(done, source, tmp_path, monkeypatch):
    """A stop between two evaluations, one while training: nothing is done twice, and the numbers are the same."""
    study, out = tiny_study(tmp_path, source), tmp_path / "out"
    real_pretrain, real_evaluate = running.pretrain, Evaluation.to_file
    count = {"pretrain": 0, "evaluate": 0}

    def pretrain(config, folder):
        count["pretrain"] += 1
        if count["pretrain"] == 2:
            raise Interrupted("stopped")
        return real_pretrain(config, folder)

    def evaluate(config, memo):
        count["evaluate"] += 1
        if count["evaluate"] == 2:
            raise KeyboardInterrupt
        return real_evaluate(config, memo)

    monkeypatch.setattr(running, "pretrain", pretrain)
    monkeypatch.setattr(Evaluation, "to_file", evaluate)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, out)
    assert state(study.cells[0], out) == "started"
    write_tables(study, out)
    assert "1 of 4 cells started" in (out / "table.md").read_text()
    assert "3 of 4 cells not started" in (out / "table.html").read_text()
    with pytest.raises(Interrupted):
        run_study(study, out)
    assert run_study(study, out) == []
    assert count["evaluate"] == 4 * 2 + 1
    theirs, ours = (make_table(*pair).rows for pair in (done, (study, out)))
    assert [row.scores for row in ours] == [row.scores for row in theirs]


def test_one_cell_at_a_time(source, tmp_path):
    study, out = tiny_study(tmp_path, source), tmp_path / "out"
    run_study(study, out, index=2)
    assert [state(cell, out) for cell in study.cells] == ["not started", "not started", "finished", "not started"]
    table = make_table(study, out)
    assert table.rows[0].scores["knn.top1"].std is None
    assert show(table.rows[0].scores["knn.top1"], "knn.top1", 2).endswith("(n = 1)")
    assert findings(table) == ["Fewer than two seeds to set against most, so nothing is claimed about: half."], "once"
    assert table.rows[0].differences["knn.top1"] is None, "the reference has no such seed yet"
    with pytest.raises(ValueError, match=r"Study\.index must be in 0 to 3; got 4"):
        run_study(study, out, index=4)


def test_a_cell_that_another_process_works_on_is_passed_over(source, tmp_path):
    study, out = tiny_study(tmp_path, source), tmp_path / "out"
    running.open_study(study, out)
    said = []
    with SoftFileLease(out / "cells" / f".{study.cells[1].name}.lease", lease_duration=running.LEASE_S):
        assert run_study(study, out, index=1, say=said.append) == []
    assert state(study.cells[1], out) == "not started"
    assert any("another process" in text for text in said)


ELSEWHERE = """
import os, signal, socket, sys, torch
from pathlib import Path
from study_plan import tiny_study
from pantomim.study import run as running

socket.gethostname = lambda: "elsewhere"  # nobody here can ask whether it still runs
running.LEASE_S, backward, done = 2.0, torch.Tensor.backward, []

def dying(*arguments, **named):
    if len(done) == 6:  # two steps into the second cell
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(backward(*arguments, **named))

torch.Tensor.backward = dying
running.run_study(tiny_study(Path(sys.argv[1]), Path(sys.argv[2]), seeds=[0]), Path(sys.argv[1], "out"))
"""


@pytest.mark.slow
def test_the_cell_of_a_killed_process_of_another_machine_is_taken_over(source, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "LEASE_S", 2.0)
    monkeypatch.setattr(running, "POLL_S", 0.1)
    study, out = tiny_study(tmp_path, source, seeds=[0]), tmp_path / "out"
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    died = subprocess.run([sys.executable, "-c", ELSEWHERE, tmp_path, source], env=os.environ | {"PYTHONPATH": path})
    assert died.returncode == -signal.SIGKILL
    assert [state(cell, out) for cell in study.cells] == ["finished", "started"]
    assert run_study(study, out, index=1) == []
    assert state(study.cells[1], out) == "started", "it may be at work"
    assert run_study(study, out) == []
    assert [state(cell, out) for cell in study.cells] == ["finished", "finished"]


def test_tables_are_written_by_one_process_at_a_time(source, tmp_path, monkeypatch):
    """Whoever opens the folder removes what killed processes left: another's half-written table would be gone, too."""
    study, out = tiny_study(tmp_path, source), tmp_path / "out"
    run_study(study, out, minutes=0)
    written = []

    def replace(path, data):
        with pytest.raises(Timeout):
            SoftFileLease(out / ".lease", lease_duration=running.LEASE_S, timeout=0).acquire()
        written.append(path)

    monkeypatch.setattr(page, "replace_file", replace)
    assert write_tables(study, out) == written


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit leaves its jobs alone
def test_jobs_are_queued_and_share_the_cells(source, tmp_path, capsys, monkeypatch):
    pytest.importorskip("submitit", reason="the extra submitit is not installed")
    command = ["study", str(write_plan(tmp_path / "p.yaml", seeds=[0])), "--data", str(source), "--out"]
    main([*command, str(tmp_path / "out"), "--minutes", "0", "--jobs", "2", "--job", "cluster=local"])
    numbers = re.findall(r"\d+", capsys.readouterr().out.split(":")[-1].split(".")[0])
    ends = [tmp_path / "out" / "jobs" / f"{number}_0_result.pkl" for number in numbers]
    while not all(end.is_file() for end in ends):
        time.sleep(0.1)
    for number, end in zip(numbers, ends, strict=True):
        log = end.with_name(f"{number}_0_log.err").read_text()
        assert pickle.loads(end.read_bytes()) == ("success", None), log
        assert "0 minutes are over" in log
    assert (tmp_path / "out" / "table.html").is_file()
    with pytest.raises(SystemExit):
        main([*command, str(tmp_path / "out"), "--jobs", "1", "--job", "no_such=1"])
    assert "--job must be NAME=VALUE" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(SystemExit):
        main([*command, str(tmp_path / "out"), "--jobs", "1"])
    assert "pip install 'pantomim[submitit]'" in " ".join(capsys.readouterr().err.split())


def test_no_cell_is_started_after_the_time_is_over(source, tmp_path):
    study, out = tiny_study(tmp_path, source), tmp_path / "out"
    said = []
    run_study(study, out, minutes=0, say=said.append)
    assert {state(cell, out) for cell in study.cells} == {"not started"}
    assert any("to resume" in text for text in said)


def test_a_cell_that_fails_stops_no_other_and_is_shown(source, tmp_path, capsys):
    arms = {"most": None, "broken": {"init": str(tmp_path / "no_such_run")}}
    compare = {"metrics": ["knn.top1"], "reference": "most"}
    evaluations = {"knn": {"protocol": "knn", "data": "{data}", "device": "cpu"}}
    plan = write_plan(tmp_path / "p.yaml", arms=arms, seeds=[0, 1], compare=compare, evaluations=evaluations)
    out = tmp_path / "out"
    command = ["study", str(plan), "--data", str(source), "--out", str(out)]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 1
    assert "2 cells failed" in " ".join(capsys.readouterr().err.split())
    table = json.loads((out / "table.json").read_text())
    assert [cell["state"] for cell in table["cells"]] == ["finished", "failed"] * 2
    assert "no_such_run" in table["cells"][1]["error"]
    assert (out / "cells" / "01-broken-seed0.traceback.txt").is_file()
    for name in ("table.md", "table.html"):
        assert "2 of 4 cells failed" in (out / name).read_text()
    rows = {row["name"]: row for row in table["rows"]}
    assert rows["broken"]["scores"]["knn.top1"] is None
    main([*command, "--table"])
    assert "2 of 4 cells are not finished" in capsys.readouterr().out


def test_another_plan_in_the_same_folder_is_refused(done, source, tmp_path):
    study, out = done
    other = tiny_study(tmp_path, source, duration={"steps": 5})
    with pytest.raises(ValueError, match=r"arms\.half\.duration\.steps: 4 there, 5 here"):
        run_study(other, out)
    fewer = tiny_study(tmp_path, source, without=("probe",))
    with pytest.raises(ValueError, match=r"evaluations: knn, probe there, knn here"):
        run_study(fewer, out)
    free = tiny_study(tmp_path, source, compare={"metrics": ["knn.top1"], "reference": "most"}, summary="Other words.")
    assert run_study(free, out) == [], "words and columns decide no number"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds\s+me\.jpg"):
        run_study(study, tmp_path / "photos")


def test_a_column_that_is_no_number_names_those_there_are(done, source, tmp_path):
    wrong = tiny_study(tmp_path, source, compare={"metrics": ["knn.top5"], "reference": "most"})
    with pytest.raises(ValueError, match=r"got knn\.top5\. It has top1, top1_per_class"):
        make_table(wrong, done[1])


def test_what_was_left_out_is_said(done, source, tmp_path):
    study, out = tiny_study(tmp_path, source, without=("probe",)), tmp_path / "out"
    write_tables(study, out)
    assert "Left out on purpose: probe." in (out / "table.md").read_text()
    assert "Left out on purpose: probe." in (out / "table.html").read_text()


def test_an_evaluation_may_be_added_later_and_only_it_is_carried_out(source, tmp_path, capsys, monkeypatch):
    plan, out = write_plan(tmp_path / "p.yaml", seeds=[0]), tmp_path / "out"
    command = ["study", str(plan), "--data", str(source), "--out", str(out)]
    main(command)
    said = " ".join(capsys.readouterr().err.split())
    assert "Left out: evaluation probe, as its input other is not given. Add the input other=SRC" in said
    for name in ("table.md", "table.html"):
        assert "Left out: evaluation probe" in (out / name).read_text()
    before = {
        path: when for path, when in stamps(out).items() if path.suffix == ".safetensors" or path.name == "knn.json"
    }
    written = (out / "study.yaml").read_text()
    more = [*command, "--input", f"other={source}"]
    main([*more, "--list"])
    assert capsys.readouterr().out.count("started") == 2, "the evaluation is not there yet"
    assert (out / "study.yaml").read_text() == written, "a list changes nothing"
    evaluated = []
    real = Evaluation.to_file

    def evaluate(config, memo):
        evaluated.append(config.out.name)
        return real(config, memo)

    monkeypatch.setattr(Evaluation, "to_file", evaluate)
    main(more)
    assert evaluated == ["probe.json"] * 2
    assert before
    assert before.items() <= stamps(out).items(), "nothing was trained or evaluated again"
    table = json.loads((out / "table.json").read_text())
    assert [cell["state"] for cell in table["cells"]] == ["finished"] * 2
    assert table["rows"][0]["scores"]["probe.top1"] is not None
    assert "Left out" not in (out / "table.md").read_text()
    with pytest.raises(SystemExit):
        main(command)
    assert "evaluations: knn, probe there, knn here" in " ".join(capsys.readouterr().err.split())


def test_the_command(source, tmp_path, capsys):
    plan = write_plan(tmp_path / "p.yaml")
    command = ["study", str(plan), "--data", str(source), "--input", f"other={source}", "--out", str(tmp_path / "out")]
    main([*command, "--list"])
    said = capsys.readouterr().out
    assert "--index 0 to 3" in said
    assert "03-most-seed1" in said
    assert not (tmp_path / "out").exists()
    main([*command, "--index", "3"])
    assert "3 of 4 cells are not finished" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(command[:2])
    assert ended.value.code == 2
    assert "input data=SRC" in " ".join(capsys.readouterr().err.split())
    main(["study"])
    assert "masks" in capsys.readouterr().out


def test_an_interval_of_three_seeds_is_that_of_students_t():
    spread = Spread.of({0: 1.0, 1: 2.0, 2: 3.0})
    assert spread.half_width == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert spread.side == 0
    assert Spread.of({0: 1.0, 1: 1.1, 2: 1.2}).side == 1
    assert Spread.of({0: -1.0, 1: -1.1, 2: -1.2}).side == -1
    assert Spread.of({0: 5.0}).side == 0
    assert Spread.of({}) is None

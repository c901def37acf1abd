"""Several runs on one page: what is an arm, who is ahead, and what a reader can take away."""

import base64
import csv
import io
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from run_folder import row, write_json, write_metrics, write_result, write_run

from pantomim.report.compare import make_comparison, read_arms, same_task
from pantomim.report.folder import read_run
from pantomim.report.html import latex
from pantomim.report.measures import Measure
from pantomim.report.scores import Score
from pantomim.report.watch import watch_server


def runs_of(tmp_path: Path, **arms: list[float]) -> list[Path]:
    """A run for each score of an arm, at seeds 0, 1 ...; arms differ in their recipes."""
    paths = []
    for name, scores in arms.items():
        for seed, score in enumerate(scores):
            paths.append(write_run(tmp_path / f"{name}-s{seed}", recipe=name, seed=seed))
            (paths[-1] / "eval" / "linear-mnist.json").unlink()
            write_result(paths[-1], "knn-mnist", trained=score, untrained=0.5, pixels=0.6)
    return paths


def page_of(paths: list[Path], tmp_path: Path) -> str:
    arms, notes = read_arms(paths)
    return make_comparison(arms, tmp_path / "compare.html", {}, notes).read_text(encoding="utf-8")


def words_of(page: str) -> str:
    text = re.sub(r"<(style|svg).*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", text.replace("\N{NO-BREAK SPACE}", " "))


def saved(page: str, name: str) -> str:
    found = re.search(rf'download="{re.escape(name)}" href="data:[^,]*;base64,([^"]*)"', page)
    return base64.b64decode(found[1]).decode()


def measure(*, better: int = 1, num_images: int | None = None, rivals=None, **arms: list[float]) -> Measure:
    scores = {n: {seed: Score(value) for seed, value in enumerate(of)} for n, of in enumerate(arms.values())}
    found = {who: {0: [Score(value)]} for who, value in (rivals or {}).items()}
    return Measure("k-NN", better=better, num_images=num_images, scores=scores, rivals=found)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (measure(a=[0.70, 0.75, 0.71], b=[0.60, 0.66, 0.60]), r"a is ahead .* b \(95 % interval 7.* over 3 seeds"),
        (measure(a=[0.70, 0.75], b=[0.69, 0.77]), r"b is best .* cannot be told apart from a .*paired over 2 seeds"),
        (measure(a=[0.9], b=[0.5], num_images=1000), r"a is ahead with 90.0 .*over test images, not over seeds"),
        (measure(a=[0.52], b=[0.5], num_images=100), r"a is best with 52.0 .* cannot be told apart from b"),
        (measure(a=[0.9], b=[0.5]), r"cannot be told apart from b .*nothing says what can be chance"),
        (measure(a=[0.70, 0.71, 0.72], b=[0.5]), r"a is ahead .*not the same seeds"),
        (measure(a=[0.7], b=[], rivals={"pixels": 0.8}), r"only a has it, 70.0 %\. None is above raw pixels"),
        (measure(a=[0.3, 0.31, 0.3], b=[0.7, 0.71, 0.7], better=-1), r"a is ahead .* below b"),
    ],
)  # fmt: skip
def test_the_finding_follows_from_the_numbers(found, words):
    assert re.search(words, found.finding(["a", "b"]).replace("\N{NO-BREAK SPACE}", " "))


def test_runs_that_differ_in_the_seed_alone_are_one_arm(tmp_path):
    arms, _ = read_arms(runs_of(tmp_path, mae=[0.7, 0.8], cae=[0.6]))
    assert [(arm.name, list(arm.runs)) for arm in arms] == [("mae", [0, 1]), ("cae-s0", [0])]
    again, _ = read_arms([write_run(tmp_path / "other" / "mae-s0", recipe="mae", seed=0), tmp_path / "mae-s0"])
    assert [arm.name for arm in again] == ["other/mae-s0", f"{tmp_path.name}/mae-s0"]


def test_runs_are_named_as_they_were_given(tmp_path, monkeypatch):
    """And no path of this machine stands on a page that is handed on."""
    runs_of(tmp_path / "runs", one=[0.5], two=[0.6])
    monkeypatch.chdir(tmp_path)
    paths = [Path("runs/one-s0"), Path("runs/two-s0"), tmp_path / "runs" / "one-s0"]
    arms, _ = read_arms(paths)
    assert [str(arm.first.path) for arm in arms] == ["runs/one-s0", "runs/two-s0"]
    assert str(tmp_path) not in page_of(paths, tmp_path)
    monkeypatch.chdir(tmp_path / "runs" / "one-s0")
    assert [arm.name for arm in read_arms([Path(), Path("../two-s0")])[0]] == ["one-s0", "two-s0"]


@pytest.mark.parametrize("count", [1, 12])
def test_one_run_and_twelve_are_pages(tmp_path, count):
    paths = runs_of(tmp_path, **{f"arm{number}": [0.5 + number / 30] for number in range(count)})
    page = page_of(paths, tmp_path)
    assert not re.search(r"https?://|<script|url\(", page)
    assert page.index('class="lead"') < page.index("<section")
    assert len(re.findall(r'<text class="name"', page)) == count + 2
    rows = list(csv.reader(io.StringIO(saved(page, "every-score.csv"))))
    assert [float(row[-1]) for row in rows[1:]] == [0.5 + number / 30 for number in range(count)]
    assert r"\toprule" in saved(page, "scores.tex")
    assert saved(page, "loss-over-images-seen.svg").startswith('<svg xmlns="http://www.w3.org/2000/svg"')


def test_what_differs_and_nothing_else_is_listed(tmp_path):
    paths = runs_of(tmp_path, one=[0.5], two=[0.6])
    config = yaml.safe_load((paths[1] / "config.yaml").read_text())
    config["method"]["masker"]["ratio"] = 0.5
    (paths[1] / "config.yaml").write_text(yaml.safe_dump(config))
    rows = list(csv.reader(io.StringIO(saved(page_of(paths, tmp_path), "what-differs.csv"))))
    assert rows[0] == ["", "one-s0", "two-s0"]
    assert sorted(rows[1:]) == [["method.masker.ratio", "0.75", "0.5"], ["recipe", "one", "two"]]
    assert not same_task(read_arms(paths)[0])
    assert "the heights of their losses cannot be compared" in words_of(page_of(paths, tmp_path))


def test_scores_that_were_measured_otherwise_stand_apart(tmp_path):
    paths = runs_of(tmp_path, one=[0.5], two=[0.6])
    write_result(paths[1], "knn-mnist", trained=0.7, num_test=77)
    text = words_of(page_of(paths, tmp_path))
    assert "(num_test 77): only two-s0 has it, 70.0 %" in text
    assert "(num_test 1000): only one-s0 has it, 50.0 %" in text


def test_unfinished_runs_and_runs_without_scores_are_named(tmp_path):
    paths = runs_of(tmp_path, one=[0.5], two=[0.6])
    (paths[0] / "finished.json").unlink()
    for path in paths:
        (path / "eval" / "knn-mnist.json").unlink()
    text = words_of(page_of(paths, tmp_path))
    assert "unfinished: step 60 of 60" in text
    assert "Who is ahead cannot be said: no score is on record" in text
    write_json(paths[1] / "finished.json", {"steps": 60, "alarms": ["3 of 512 codes used"]})
    assert "two-s0: While training: 3 of 512 codes used" in words_of(page_of(paths, tmp_path))


@pytest.mark.parametrize(("paths", "words"), [([], "must name run folders"), (["nowhere"], "must be a run folder")])
def test_what_is_no_run_is_refused(tmp_path, paths, words):
    with pytest.raises(ValueError, match=words):
        read_arms([tmp_path / path for path in paths])


def test_latex_is_escaped_and_bold():
    text = latex([["", "top-1, %"], ["a_b", "70.0 ± 0.1"], ["c", "−1"]], [(0, 1)])
    assert r"a\_b & \textbf{70.0 $\pm$ 0.1} \\" in text
    assert r"c & $-$1 \\" in text


def test_a_run_is_watched_on_this_machine_alone_and_nothing_is_written(tmp_path):
    run = write_run(tmp_path / "run")
    before = sorted(run.rglob("*"))
    with watch_server(run, 0, 5.0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"127.0.0.1:{server.server_port}"
        with urllib.request.urlopen(f"http://{place}/") as answer:
            assert answer.headers["Refresh"] == "5"
            assert "93.1" in answer.read().decode()
        for request in (
            f"http://{place}/config.yaml",
            urllib.request.Request(f"http://{place}/", headers={"Host": "x"}),
        ):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(request)
        (run / "config.yaml").unlink()
        with urllib.request.urlopen(f"http://{place}/") as answer:
            assert "There is no page yet" in answer.read().decode()
        server.shutdown()
    assert {*before} - {*run.rglob("*")} == {run / "config.yaml"}
    assert server.server_address[0] == "127.0.0.1"


def test_the_runs_of_a_chain_are_compared_by_their_last(tmp_path):
    (tmp_path / "chain").mkdir()
    (tmp_path / "chain" / "stages.yaml").write_text(yaml.safe_dump({"stages": 2, "reinit": "full"}))
    for number in (0, 1):
        write_run(tmp_path / "chain" / f"stage-{number}")
    arms, notes = read_arms([tmp_path / "chain"])
    assert arms[0].first.path == read_run(tmp_path / "chain" / "stage-1").path
    assert notes == ["chain is a chain of runs: its stage 1 is compared."]
    assert len(read_arms([tmp_path / "chain", tmp_path / "chain" / "stage-1"])[0]) == 1
    with watch_server(tmp_path / "chain", 0, 5.0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/stage-0/report.html") as answer:
            assert "93.1" in answer.read().decode()
        server.shutdown()


@pytest.mark.parametrize(("port", "every", "words"), [(70000, 5.0, "watch.port must"), (0, 0.0, "watch.every must")])
def test_what_cannot_be_served_is_refused(tmp_path, port, every, words):
    with pytest.raises(ValueError, match=words):
        watch_server(tmp_path, port, every)


def tuned(path: Path, identity: str, **about) -> Path:
    """A run with a score of its classifier on some test images."""
    run = write_run(path, recipe=f"finetune_{path.name}")
    for file in (run / "eval").iterdir():
        file.unlink()
    data = {"num_test": 1000, "key": {"identity": identity}}
    found = {"protocol": "finetune", "dataset": "photos", "data": data, "trained": {"top1": about.pop("top1")}}
    write_json(run / "eval" / "finetune-photos.json", {**found, **about})
    return run


@pytest.mark.parametrize(("identity", "compared"), [("a", True), ("b", False)])
def test_fine_tuned_runs_are_compared_on_the_same_images_alone(tmp_path, identity, compared):
    runs = [
        tuned(tmp_path / "one", "a", top1=0.9, settings={"against": "one/scratch"}),
        tuned(tmp_path / "two", identity, top1=0.5, settings={"against": "two/scratch"}),
    ]
    assert ("40.0 points above two" in words_of(page_of(runs, tmp_path))) == compared


def test_a_baseline_is_that_of_its_own_network(tmp_path):
    """And no number where networks differ."""
    runs = runs_of(tmp_path, small=[0.4], large=[0.7])
    write_result(runs[0], "knn-mnist", trained=0.4, untrained=0.3, pixels=0.2)
    write_result(runs[1], "knn-mnist", trained=0.7, untrained=0.6, pixels=0.2)
    text = words_of(page_of(runs, tmp_path))
    assert "30.0 % to 60.0 %" in text
    assert "None is above" not in text


@pytest.mark.parametrize(
    ("method", "finished", "ranked"),
    [({}, True, True), ({"momentum": {"start": 0.9}}, True, False), ({}, False, False)],
)
def test_losses_are_ranked_where_they_are_of_one_task(tmp_path, method, finished, ranked):
    for name, loss in (("one", 0.3), ("two", 0.5)):
        for seed in range(3):
            run = write_run(tmp_path / f"{name}-s{seed}", recipe=name, seed=seed)
            config = yaml.safe_load((run / "config.yaml").read_text())
            config["method"] |= method
            (run / "config.yaml").write_text(yaml.safe_dump(config))
            write_metrics(run, [row(step, held_out_loss=loss + seed / 100) for step in (1, 60)])
            for file in (run / "eval").iterdir():
                file.unlink()
            if not finished and name == "two":
                (run / "finished.json").unlink()
    text = words_of(page_of(sorted(tmp_path.glob("*-s?")), tmp_path))
    assert ("Loss on held-out images: one is ahead" in text) == ranked

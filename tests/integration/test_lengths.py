"""Runs whose length is found by the clock, and runs that are made longer; what comes after a run."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_images

import pantomim
from pantomim.cli import main
from pantomim.config import Duration, Pretrain, from_yaml
from pantomim.engine.record import read_metrics
from pantomim.engine.stops import StopSignals

SMALL = ["--runtime.tracker", "none", "--runtime.device", "cpu", "--runtime.threads", "1", "--batch-size", "8"]
SMALL += ["--method.encoder.depth", "1", "--method.encoder.width", "16", "--method.encoder.heads", "2"]
SMALL += ["--method.decoder.width", "16"]


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    source = tiny_images(tmp_path / "images.npz", 40)
    return ["pretrain", "mae", "--data", str(source), "--size", "micro", "--out", str(tmp_path / "run"), *SMALL]


def losses(folder: Path) -> list[tuple[int, float, float]]:
    return [(line["step"], line["loss"], line["lr"]) for line in read_metrics(folder / "metrics.jsonl")]


def test_minutes_choose_steps_that_a_resumed_run_keeps(command, tmp_path: Path, capsys) -> None:
    main([*command, "--minutes", "0.05"])
    config = from_yaml(Pretrain, tmp_path / "run" / "config.yaml")
    assert "steps fit into 0.05 minutes" in capsys.readouterr().err
    assert config.duration.steps == json.loads((tmp_path / "run" / "finished.json").read_text())["steps"] > 0
    assert config.optim.warmup.steps == round(0.05 * config.duration.steps)  # the schedule fits
    (tmp_path / "run" / "finished.json").unlink()
    main([*command, "--minutes", "0.1"])
    assert from_yaml(Pretrain, tmp_path / "run" / "config.yaml") == config
    with pytest.raises(SystemExit):
        main([*command, "--minutes", "1", "--steps", "5"])
    assert "--minutes must be above 0, and given without --steps and --epochs" in capsys.readouterr().err


def test_a_longer_run_continues_a_finished_one_with_its_optimiser(command, tmp_path: Path, capsys, monkeypatch) -> None:
    run = tmp_path / "run"
    main([*command, "--steps", "20"])
    first = losses(run)
    with pytest.raises(SystemExit):
        main([*command, "--steps", "40"])
    assert "A finished run is trained longer with --extend." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--steps", "10", "--extend"])
    assert "must be longer than the 20 steps" in capsys.readouterr().err
    assert (run / "finished.json").is_file()

    longer, seen = [*command, "--steps", "60", "--extend"], StopSignals()
    seen.requested = True
    monkeypatch.setattr("pantomim.engine.pretrain.StopSignals", lambda: seen)
    seen.__enter__ = lambda: seen
    with pytest.raises(SystemExit):  # after one step
        main(longer)
    monkeypatch.undo()
    assert "after step 21 of 60" in capsys.readouterr().err
    main(longer)
    config = from_yaml(Pretrain, run / "config.yaml")
    assert (config.duration, config.extended) == (Duration(steps=60), (Duration(steps=20),))
    in_turn = losses(run)
    assert in_turn[:20] == first
    assert [step for step, _, _ in in_turn] == [*range(1, 61)]
    rates = np.array([rate for _, _, rate in in_turn[20:]])
    assert rates.argmax() == 2  # two steps of 40, a twentieth, rise
    assert (np.diff(rates[2:]) < 0).all()

    main(longer)  # is complete
    assert losses(run) == in_turn
    other = [word.replace(str(run), str(tmp_path / "whole")) for word in command]
    main([*other, "--steps", "20"])
    main([*other, "--steps", "60", "--extend"])  # not stopped in between
    assert losses(tmp_path / "whole") == in_turn
    main(["pretrain", "--config", str(run / "config.yaml"), "--out", str(tmp_path / "again")])  # each length in turn
    assert losses(tmp_path / "again") == in_turn
    main(["pretrain", "--out", str(run), "--steps", "70", "--extend"])  # all else as it was
    assert from_yaml(Pretrain, run / "config.yaml").extended == (Duration(steps=20), Duration(steps=60))


@pytest.mark.parametrize("labelled", [True, False])
def test_the_commands_after_a_run_work(command, tmp_path: Path, capsys, labelled) -> None:
    if not labelled:
        arrays = dict(np.load(tmp_path / "images.npz"))
        np.savez(tmp_path / "images.npz", images=arrays["images"], split=arrays["split"])
    main([*command, "--steps", "2"])
    *_, report, score, python = capsys.readouterr().out.strip().splitlines()
    assert ("evaluate knn" in score) == labelled
    for line in (report, score):
        program, *words = shlex.split(line)
        assert program == "pantomim"
        main(words)
    assert (tmp_path / "run" / "report.html").is_file()
    names: dict[str, object] = {}
    exec(python.strip(), names)
    assert type(names["encoder"]) is type(pantomim.load(tmp_path / "run"))

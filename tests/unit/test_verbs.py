"""The verbs in Python: what they give, what they refuse and how, and that they are the command line's."""

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny import tiny_images

import pantomim
from pantomim import verbs
from pantomim.cli import COMMANDS, main
from pantomim.config import Pretrain, from_yaml, to_dict, with_settings
from pantomim.evaluate import PROTOCOLS, TASK_PROTOCOLS
from pantomim.recipes import RECIPES

VERBS = [name for name in pantomim.__all__ if name not in ("__version__", "load")]
SMALL = {"method.encoder.depth": 1, "method.decoder.depth": 1, "batch_size": 16}
SMALL |= {"runtime": {"tracker": "none", "device": "cpu"}}
PAPER = next(recipe for recipe in RECIPES if recipe.name == "mae_vit_base_in1k").config


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, verbs.Run]:
    folder = tmp_path_factory.mktemp("verbs")
    source = tiny_images(folder / "tiny.npz")
    return source, pantomim.pretrain("mae", data=source, out=folder / "run", size="micro", steps=4, settings=SMALL)


def test_the_main_job(job: tuple[Path, verbs.Run]) -> None:
    source, run = job
    assert run.finished.steps == 4
    scored = pantomim.evaluate("knn", encoder=run.out, data=source, contenders=["trained"])
    assert str(scored).startswith("knn on tiny, top-1: trained ")
    assert scored.path == run.out / "eval" / "knn-tiny.json"
    assert "untrained" not in scored.scores
    assert "knn" in pantomim.report(run.out).read_text()
    assert pantomim.load(run.out).depth == 1


def test_a_run_is_that_of_the_command(job: tuple[Path, verbs.Run], tmp_path: Path) -> None:
    source, run = job
    words = ["--size", "micro", "--steps", "4", "--method.encoder.depth", "1", "--method.decoder.depth", "1"]
    words += ["--batch-size", "16", "--runtime.tracker", "none", "--runtime.device", "cpu"]
    main(["pretrain", "mae", "--data", str(source), "--out", str(tmp_path), *words])
    assert from_yaml(Pretrain, tmp_path / "config.yaml") == from_yaml(Pretrain, run.out / "config.yaml")
    assert (tmp_path / "encoder.safetensors").read_bytes() == (run.out / "encoder.safetensors").read_bytes()


def test_a_task_from_an_encoder_to_predictions(job: tuple[Path, verbs.Run], tmp_path: Path) -> None:
    source, run = job
    small = {"runtime": SMALL["runtime"]}
    tuned = pantomim.finetune(source, encoder=run.out, out=tmp_path, steps=2, compare=True, settings=small)
    assert tuned.scratch is not None
    assert tuned.scratch.out == tmp_path / "scratch"
    assert tuned.scored is not None
    assert tuned.scored.scores["against"]["from_scratch"]
    again = pantomim.evaluate("classifier", classifier=tuned.out, data=source)
    assert again.scores["trained"]["top1"] == tuned.scored.scores["trained"]["top1"]
    assert pantomim.predict(tuned.out, source, out=tmp_path / "p.csv").num_predicted == 80


def test_an_explanation_is_a_page() -> None:
    found = pantomim.explain("mae_micro_cifar10", settings={"optim.base_lr": 1e-3})
    assert re.search(r"base_lr +0\.001", str(found))
    assert ("Cost", dict(found.sections)["Cost"]) in found.sections


@pytest.mark.parametrize(
    ("unit", "precision", "advised"),
    [
        ("avx512_bf16", "auto", True),
        ("amx_tile", "float32", True),
        ("amx_tile", "bfloat16", False),
        ("", "auto", False),
    ],
)
def test_bfloat16_is_advised_where_the_cpu_has_a_unit_for_it(unit, precision, advised, monkeypatch) -> None:
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda there=name == unit: there)
    settings = {"runtime.precision": precision, "runtime.device": "cpu"}
    rows = dict(dict(pantomim.explain("mae_micro_cifar10", settings=settings).sections)["Time"])
    assert ("runtime.precision bfloat16" in rows.get("faster by", "")) == advised


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: pantomim.pretrain("mae", out="x"), r"^pretrain\.data must be given for the bare method mae"),
        (lambda: pantomim.pretrain("mae_vit_base_in1k"), r"^pretrain\.out must name a run folder"),
        (lambda: pantomim.pretrain("mae_tiny_cifar1", out="x"), "Did you mean mae_tiny_cifar10"),
        (lambda: pantomim.finetune("mnist", out="x"), r"^finetune\.encoder must name .* set finetune\.scratch"),
        (lambda: pantomim.finetune("mnist", encoder="no", out="x"), "got no, which does not exist"),
        (
            lambda: pantomim.finetune(config="x", scratch=True, size="micro", balanced=True, out="x"),
            r"balanced must be",
        ),
        (lambda: pantomim.segment(config="x", preset="beit", out="x"), r"segment\.preset must be left out"),
        (lambda: pantomim.explain("mae_vit_base_in1k", settings={"optim.base_lrr": 1}), "Did you mean optim.base_lr?"),
        (
            lambda: pantomim.explain("mae_vit_base_in1k", settings={"optim.base_lr": -1}),
            r"OptimConfig\.base_lr must be above 0; got -1",
        ),
        (
            lambda: pantomim.explain("mae_vit_base_in1k", settings={"method.masker.noise.color": "red"}),
            "method.masker.noise: no such key",
        ),
        (lambda: pantomim.evaluate("kn", encoder="x", data="mnist"), "Did you mean knn?"),
        (lambda: pantomim.evaluate("knn", data="mnist"), r"^evaluate\.encoder alone must name"),
        (
            lambda: pantomim.evaluate("knn", encoder="x", data="mnist", image=3),
            "image: no such key. Did you mean images",
        ),
    ],
)
def test_errors_name_arguments(wrong: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        wrong()
    assert "--" not in str(caught.value)
    assert "prepare." not in str(caught.value)


def test_settings_are_those_of_the_config() -> None:
    other = {"method.masker.kind": "color_noise", "method.masker.noise.color": "red", "duration.steps": 9}
    changed = to_dict(with_settings(PAPER, other))
    assert changed["method"]["masker"]["noise"]["color"] == "red"
    assert changed["method"]["masker"]["ratio"] == PAPER.method.masker.ratio
    assert changed["duration"] == {"steps": 9, "epochs": None}
    assert with_settings(PAPER, {}) == PAPER


def test_the_verbs_are_commands_and_alike() -> None:
    assert set(VERBS) <= set(COMMANDS)
    planned, run = (dict(inspect.signature(verb).parameters) for verb in (pantomim.explain, pantomim.pretrain))
    assert planned.keys() ^ run.keys() == {"time", "minutes", "extend"}
    assert all(planned[name] == run[name] for name in planned.keys() & run.keys())
    told = inspect.getdoc(pantomim.evaluate) or ""
    assert not [kind.protocol for kind in (*PROTOCOLS, *TASK_PROTOCOLS) if kind.protocol not in told]
    for name in VERBS:
        told = inspect.getdoc(getattr(pantomim, name)) or ""
        for argument in inspect.signature(getattr(pantomim, name)).parameters:
            assert f"\n    {argument}: " in told, (name, argument)


@pytest.mark.parametrize(("analysis", "options"), [("neighbours", {"neighbours": 2}), ("spectrum", {})])
def test_inspect_shows_what_its_command_does(job: tuple[Path, verbs.Run], tmp_path: Path, analysis, options) -> None:
    source, run = job
    seen = pantomim.inspect(analysis, run.out, images=source, out=tmp_path / "page.html", count=12, **options)
    assert seen.page.read_text().startswith("<!doctype html>")
    assert all(file.stat().st_size for file in seen.files)
    assert bool(seen.pictures) != (seen.blocks is not None)
    assert all(len(row.pictures) == 3 for shown in seen.pictures for row in shown.rows)
    for wrong, message in (({"analysis": "neighbors"}, "Did you mean neighbours"), ({"near": 1}, "near")):
        with pytest.raises(ValueError, match=message):
            pantomim.inspect(wrong.pop("analysis", "spectrum"), run.out, images=source, **wrong)
    with pytest.raises(ValueError, match="which does not exist"):
        pantomim.inspect("pca", "runs/phots", out=tmp_path / "a.html")


def test_the_package_is_light_and_its_verbs_stay() -> None:
    code = (
        "import sys, pantomim\n"
        "assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "from pantomim.evaluate import KNN\nimport pantomim.report\nimport pantomim.explain\n"
        "assert callable(pantomim.evaluate) and callable(pantomim.report) and callable(pantomim.explain)\n"
        "assert set(dir(pantomim)) == set(pantomim.__all__) and pantomim.__version__[0].isdigit()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not isinstance(pantomim.evaluate, ModuleType)


def test_how_long_a_run_takes_is_told_beforehand(tmp_path: Path, caplog) -> None:
    data = tiny_images(tmp_path / "images.npz")
    sections = dict(pantomim.explain("mae", data=data, size="micro", steps=3, time=True).sections)
    rows = dict(sections["Time"])
    assert rows["length"] == "3 steps of 32 images"
    assert "GFLOP/s of a product" in rows["by FLOPs"]
    assert rows["whole run"].endswith("GiB")
    given: dict[str, Any] = {"data": data, **dict.fromkeys(("keep", "config", "out", "settings"))}
    verbs._hint_at_hours(verbs.planned("mae", given | {"size": "micro", "steps": 3}), tmp_path)
    assert not caplog.records
    verbs._hint_at_hours(verbs.planned("mae", given | {"size": "large", "epochs": 10**7}), tmp_path)
    assert "on this CPU, by its FLOPs; pretrain.size micro" in caplog.text


def test_a_gpu_of_apple_is_the_device_that_is_timed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("pantomim.engine.runtime.usable_device", lambda owner, device: torch.device("mps"))
    monkeypatch.setattr("pantomim.engine.timing.matrix_flops_per_s", lambda device, dtype: {"mps": 1e12}[device.type])
    data = tiny_images(tmp_path / "images.npz")
    rows = dict(dict(pantomim.explain("mae", data=data, size="micro", steps=3).sections)["Time"])
    assert "1,000 GFLOP/s" in rows["by FLOPs"]
    assert "on this GPU" in rows["by FLOPs"]

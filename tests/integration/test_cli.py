"""The command line, as a user types it: the main job on a tiny set, and what happens when something is mistyped."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import tifffile
from image_files import broken_folder
from PIL import Image
from tiny import tiny_images

from pantomim import verbs
from pantomim.analysis import ANALYSES
from pantomim.cli import COMMANDS, main
from pantomim.cli.command_line import CommandLine
from pantomim.cli.run_options import read_run
from pantomim.config import Pretrain, from_dict, to_dict
from pantomim.data.libraries import mnist
from pantomim.data.transforms import Crop
from pantomim.engine.record import read_metrics
from pantomim.evaluate import PROTOCOLS
from pantomim.formats import FORMATS
from pantomim.masking import STRATEGIES
from pantomim.recipes import BARE_METHODS, BARE_TOKENIZERS, RECIPES_OF

TINY = ["--size", "micro", "--method.encoder.depth", "1", "--method.decoder.depth", "1", "--batch-size", "16"]
QUIET = ["--runtime.tracker", "none", "--runtime.device", "cpu"]


def pretrain(source: Path, out: Path, *more: str) -> None:
    steps = [] if "--steps" in more else ["--steps", "4"]
    main(["pretrain", "mae", "--data", str(source), "--out", str(out), *steps, *TINY, *QUIET, *more])


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("job")
    source, run = tiny_images(folder / "tiny.npz"), folder / "run"
    pretrain(source, run)
    return source, run


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that ends with exit status 2."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    said = capsys.readouterr()
    return " ".join((said.err + said.out).split())


def test_the_main_job(job: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source, run = job
    main(["evaluate", "linear", "--encoder", str(run), "--data", str(source), "--epochs", "5"])
    main(["evaluate", "knn", "--encoder", str(run), "--data", str(source), "--out", str(run / "eval/mine.json")])
    main(["features", "--encoder", str(run), "--data", str(source), "--out", str(run / "features.npz")])
    main(["report", str(run)])
    result = json.loads((run / "eval" / "linear-tiny.json").read_text())
    assert {"trained", "untrained", "pixels"} <= set(result)
    assert 0 <= result["trained"]["top1"] <= 1
    assert json.loads((run / "eval/mine.json").read_text())["protocol"] == "knn"
    assert len(np.load(run / "features.npz")["mean"]) == 80
    page = (run / "report.html").read_text()
    assert "data:image/png" in page
    assert "linear" in page
    assert "random-init" in capsys.readouterr().out


def test_metrics_have_every_step_of_a_short_run(job: tuple[Path, Path]) -> None:
    lines = [json.loads(line) for line in (job[1] / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {"loss", "lr", "images_per_s"} <= set(lines[0])


def test_a_finished_run_is_left_as_it_is(job: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source, run = job
    before = (run / "encoder.safetensors").stat().st_mtime_ns
    pretrain(source, run)
    assert "complete and was left as it is" in " ".join(capsys.readouterr().out.split())
    assert (run / "encoder.safetensors").stat().st_mtime_ns == before


def test_another_config_in_the_same_run_is_refused(job: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source, run = job
    arguments = ["pretrain", "mae", "--data", str(source), "--out", str(run), "--steps", "5", *TINY, *QUIET]
    assert "duration.steps: 4 there, 5 here" in fails(capsys, *arguments)


def test_a_config_repeats_a_run(job: tuple[Path, Path], tmp_path: Path) -> None:
    _, run = job
    main(["pretrain", "--config", str(run / "config.yaml"), "--out", str(tmp_path / "again")])
    assert (tmp_path / "again" / "encoder.safetensors").read_bytes() == (run / "encoder.safetensors").read_bytes()


def test_going_on_from_a_run_takes_its_sizes(job: tuple[Path, Path], tmp_path: Path) -> None:
    source, run = job
    arguments = ["--init", str(run), "--steps", "1", "--batch-size", "16", *QUIET]
    main(["pretrain", "mae", "--data", str(source), "--out", str(tmp_path / "on"), *arguments])
    about = json.loads((tmp_path / "on" / "encoder.json").read_text())
    assert about["encoder"]["depth"] == 1
    assert about["encoder"]["width"] == 96


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrian", "mae"], "Did you mean pretrain?"),
        (["pretrain", "mae_tiny_cifar1"], "Did you mean mae_tiny_cifar10?"),
        (["pretrain", "dino", "--data", "x"], "error: There is no recipe dino. `pantomim recipes` lists them all."),
        (["recipes", "mae_vit_bse_in1k"], "Did you mean mae_vit_base_in1k?"),
        (["pretrain"], "RECIPE must be named, unless --config is; got neither. Name one, such as mae"),
        (["pretrain", "mae", "--config", "a.yaml"], "RECIPE must be left out beside --config, which has its own; got"),
        (
            ["pretrain", "beit", "--data", "tiny.npz", "--size", "micro", "--out", "new"],
            "error: --tokenizer must be giv",
        ),
        (["pretrain", "mae", "--epochs", "ten"], "error: --epochs must be a number; got ten."),
        (["evaluate", "knn", "--chunk", "1e3"], "error: --chunk must be a whole number; got 1e3."),
        (["explain", "mae", "--data.scale=ten"], "error: --data.scale must be a number; got ten."),
        (["explain", "mae_vit_base_in1k", "--optim.base-lr", "x"], "error: --optim.base_lr must be a number; got x."),
        (["explain", "mae_vit_base_in1k", "--lr", "1e-3"], "There is no option --lr. Did you mean --optim.base_lr?"),
        (["explain", "mae_vit_base_in1k", "--ratio", "0.6"], "Did you mean --method.masker.ratio?"),
        (["explain", "mae_vit_base_in1k", "--workers", "3"], "Did you mean --data.workers?"),
        (["explain", "mae_vit_base_in1k", "--weight-decay", "0"], "Did you mean --optim.weight_decay?"),
        (["pretrain", "mae"], "--data must be given for the bare method mae"),
        (["pretrain", "mae_vit_base_in1k", "--data", "x"], "--out must name a run folder"),
        (["explain", "mae_vit_base_in1k", "--optim.base_lrr", "1"], "Did you mean --optim.base_lr?"),
        (["pretrain", "mae", "--dta", "x", "--out", "y"], "Did you mean --data?"),
        (["explain", "mae_vit_base_in1k", "--optim.base_lr", "nan"], "OptimConfig.base_lr must be above 0"),
        (["explain", "mae_vit_base_in1k", "--runtime.seed", "-1"], "RuntimeConfig.seed must be at least 0"),
        (
            ["explain", "mae_vit_base_in1k", "--method.masker.ratio", "75"],
            "RandomMasker.ratio must be in (0, 1); got 75",
        ),
        (["explain", "mae_vit_base_in1k", "--method.masker.ratio", "0.999"], "leaves no visible one"),
        (["explain", "mae_vit_base_in1k", "--method.encoder.patch_size", "15"], "a multiple of patch_size"),
        (["evaluate", "liner", "--encoder", "x"], "There is no evaluate liner. Did you mean linear?"),
        (["pretrain", "mae_vit_base_in1k", "--out", "new"], "error: --data.source must name the images; got none."),
        (["pretrain", "mae", "--data", "mnist", "--size", "enormous"], "error: --size must be one of micro,"),
        (["explain", "mae_vit_base_in1k", "--target", "sound"], "error: --method.target.kind must be one of"),
        (["explain", "dbot_vit_base_in1k", "--reinit", "some"], "--reinit must be one of full, reference, none"),
        (["explain", "mae_vit_base_in1k", "--method.masker.kind", "spiral"], "--method.masker.kind must be one of"),
        (["evaluate", "knn", "--encoder", "timm:x", "--data", "mnist"], "timm"),
        (["inspect", "map", "timm:x", "--out", "a.png"], "--images must be given where the first encoder is no run"),
        (["report", "nowhere"], "RUN must be a run folder; got nowhere"),
        (["verify", "nowhere"], "FOLDER must hold golden items"),
        (["noise", "pink"], "color: Input should be 'red',"),
        (["study", "masks", "--data", "mnist", "--index", "999"], "--index must be in 0 to"),
        (["evaluate", "knn", "--encoder", "nowhere", "--data", "mnist"], "got nowhere, which does not exist. Check"),
        (["evaluate", "knn", "--encoder", "runs/phots", "--data", "x"], "--encoder must be a run folder, a file or"),
        (["inspect", "neighbours", "timm:x", "runs/phots"], "ENCODERS must be a run folder, a file or timm:NAME; got"),
        (["features", "--encoder", "runs/phots", "--data", "x", "--out", "x.npz"], "Did you mean runs/photos?"),
        (["finetune", "x", "--encoder", "phots", "--out", "new"], "error: --encoder must be a run folder, a file or"),
        (
            ["predict", "runs/phots", "x", "--out", "x.csv"],
            "safetensors; got runs/phots, which does not exist. Did",
        ),
        (["compare", "runs/phots"], "RUNS must be a run folder; got runs/phots, which does not exist. Did you"),
    ],
)
def test_what_is_mistyped_is_explained(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "photos").mkdir(parents=True)
    tiny_images(tmp_path / "tiny.npz")
    assert message in fails(capsys, *arguments)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Set optim.base_lr to 1, or data.source.", "Set --optim.base_lr to 1, or --data.source."),
        ("OptimConfig.base_lr must be above 0.", "--optim.base_lr must be above 0."),
        ("prepare.size goes with prepare.data; Pretrain.out", "--size goes with --data; --out"),
        ("a.yaml is no valid Pretrain:\n  optim.base_lr: no", "a.yaml is no valid Pretrain:\n  optim.base_lr: no"),
        (
            "runs/data.source and data.source/x and my.data.source",
            "runs/data.source and data.source/x and my.data.source",
        ),
        ("GridMasker.ratio, which lies in a file", "GridMasker.ratio, which lies in a file"),
        ("prepare.recipe", "RECIPE"),
    ],
)
def test_messages_speak_of_options(message: str, shown: str) -> None:
    line = CommandLine("pretrain", ["mae", "--optim.base_lr", "0"])
    with pytest.raises(ValueError, match=r"There is no option --optim\.base_lrr"):
        read_run(CommandLine("pretrain", ["mae", "--optim.base_lrr", "0"]), verbs.pretrain)
    with pytest.raises(ValueError, match=r"pretrain\.data must be given"):
        verbs.pretrain(**read_run(line, verbs.pretrain)[0])
    assert line.in_options(message) == shown


def test_help_waits_for_no_model_library() -> None:
    """Of commands whose options name nothing that lies in a package of parts."""
    names = ("pretrain", "explain", "features", "report", "recipes", "stats", "noise", "verify", "study", "tokenizer")
    code = (
        "import sys\nfrom pantomim.cli import main\n"
        f"for name in {names}:\n    try:\n        main([name, '--help'])\n    except SystemExit:\n        pass\n"
        "assert not {'torch', 'timm', 'sklearn', 'matplotlib'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_help_lists_what_the_tuples_hold(capsys: pytest.CaptureFixture[str]) -> None:
    for words, names in (
        (["masks", "--help"], STRATEGIES),
        (["import", "--help"], [layout.name for layout in FORMATS]),
        (["evaluate"], [protocol.protocol for protocol in PROTOCOLS]),
        (["inspect"], [analysis.name for analysis in ANALYSES]),
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert all(name in shown for name in names), words


def test_commands_on_our_pages_exist() -> None:
    root = Path(__file__).parents[2]
    pages = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    lines = [
        found for page in pages for found in re.findall(r"\bpantomim ([a-z]+ +[^`\n#|]*--[^`\n#|]*)", page.read_text())
    ]
    assert len(lines) > 40
    for line in lines:
        words = line.split()
        assert words[0] in COMMANDS, line


def test_other_channels_than_the_encoders(
    job: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny_images(tmp_path / "seven.npz", channels=7)
    message = fails(capsys, "evaluate", "knn", "--encoder", str(job[1]), "--data", str(source))
    assert "7" in message
    assert "3" in message


def test_missing_labels(job: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "bare.npz", images=np.zeros((20, 16, 16, 3), np.uint8))
    message = fails(capsys, "evaluate", "knn", "--encoder", str(job[1]), "--data", str(tmp_path / "bare.npz"))
    assert "label" in message


def test_features_name_the_broken_images(
    job: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = broken_folder(tmp_path / "images", 120, 1), str(tmp_path / "features.npz")
    main(["features", "--encoder", str(job[1]), "--data", source, "--out", out])
    said = " ".join(capsys.readouterr().out.split())
    assert "119 rows written" in said
    assert "Left out as broken: 0003.png" in said


def test_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "pretrain", "mae", "--data", str(tmp_path), "--out", str(tmp_path / "run"))
    assert "must hold images" in message
    assert not (tmp_path / "run").exists()


def test_explain_says_what_the_data_decided(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = tiny_images(tmp_path / "tiny.npz", side=32, channels=5)
    main(["explain", "mae", "--data", str(source), "--size", "micro"])
    said = capsys.readouterr().out
    for words in ("32x32", "5 channel(s)", "4, grid 8x8", "Differences from the paper"):
        assert words in said


def test_another_unit_of_a_duration_replaces_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    main(["explain", "mae_micro_cifar10", "--optim.warmup.steps", "7", "--duration.steps=90"])
    said = capsys.readouterr().out.split("Training")[1].split("Differences")[0]
    assert re.search(r"warmup +{steps: 7, epochs: null}", said)
    assert re.search(r"duration +90 steps", said)


@pytest.mark.parametrize("kind", get_args(get_type_hints(Crop)["kind"]))
@pytest.mark.parametrize("command", ["explain mae", "pretrain mae", "tokenizer train dvae", "explain finetune_mae"])
def test_every_kind_of_crop_can_be_given(
    command: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*given: Any, **more: Any) -> None:
        found.append(planned(*given, **more).config)
        raise SystemExit

    planned, found = verbs.planned, list[Pretrain]()
    monkeypatch.setattr(verbs, "planned", read)
    source = tiny_images(tmp_path / "tiny.npz", side=32)
    with pytest.raises(SystemExit):
        main([*command.split(), "--data", str(source), "--data.crop.kind", kind, "--size", "micro"])
    assert from_dict(Pretrain, to_dict(found[0]), "test").data.crop.kind == kind


def write_sources(folder: Path) -> dict[str, Path]:
    """The kinds of data that the main job must take, as small as they come."""
    rng = np.random.default_rng(0)
    (folder / "plain" / "deep").mkdir(parents=True)
    for index in range(12):
        picture = Image.fromarray(rng.integers(0, 255, (20 + index % 3, 24, 3), dtype=np.uint8))
        picture.save(folder / "plain" / "deep" / f"{index}.jpg")
    (folder / "plain" / "notes.txt").write_text("no image")
    with zipfile.ZipFile(folder / "zipped.zip", "w") as archive:
        for name in sorted((folder / "plain" / "deep").iterdir()):
            archive.write(name, f"train/{int(name.stem) % 2}/{name.name}")
    for layout, shape in (("first", (13, 32, 32)), ("last", (32, 32, 12))):
        (folder / layout).mkdir()
        for index in range(6):
            bands = rng.integers(-200, 10_000, shape).astype(np.int16)
            tifffile.imwrite(folder / layout / f"{index}.tif", bands)
    np.savez(folder / "seven.npz", images=rng.integers(-200, 10_000, (20, 7, 16, 16)).astype(np.int16))
    return {name: folder / name for name in ("plain", "zipped.zip", "first", "last", "seven.npz")}


@pytest.mark.parametrize(
    ("source", "channels"), [("plain", 3), ("zipped.zip", 3), ("first", 13), ("last", 12), ("seven.npz", 7)]
)
def test_the_main_job_takes_every_kind_of_data(source: str, channels: int, tmp_path: Path) -> None:
    pretrain(write_sources(tmp_path)[source], tmp_path / "run", "--steps", "2")
    about = json.loads((tmp_path / "run" / "encoder.json").read_text())
    assert about["encoder"]["in_chans"] == channels
    assert about["scale"]["divisor"] == (255 if channels == 3 else 10_000)
    if source == "first":
        main(["report", str(tmp_path / "run")])
        assert "data:image/png" in (tmp_path / "run" / "report.html").read_text()


def test_a_system_without_the_calls_of_unix(tmp_path: Path) -> None:
    """As on Windows: no module `resource`, no `os.pread`, no signals to wait for."""
    source = write_sources(tmp_path)["zipped.zip"]
    words = ["pretrain", "mae", "--data", str(source), "--steps", "1", "--out", str(tmp_path / "run"), *TINY, *QUIET]
    code = (
        "import os, signal, sys\nsys.modules['resource'] = None\n"
        "for owner, name in ((os, 'pread'), (os, 'sched_getaffinity'), (os, 'statvfs'), (signal, 'pthread_sigmask'),\n"
        "                    (signal, 'sigtimedwait'), (signal, 'SIGCHLD')):\n    delattr(owner, name)\n"
        f"from pantomim.cli import main\nmain({[*words, '--data.workers', '0']})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[0]["memory_gib"] is None


def test_recipes_are_a_line_each_and_bare_methods_first(capsys: pytest.CaptureFixture[str]) -> None:
    recipes = [recipe for listed in RECIPES_OF.values() for recipe in listed]
    assert not [recipe.name for recipe in recipes if not recipe.cost or "@@" in recipe.cost]
    assert not [name for name, family in (BARE_METHODS | BARE_TOKENIZERS).items() if not family.idea]
    main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < len(recipes) + len(BARE_METHODS) + 40
    assert [line.split()[0] for line in lines if line and line.split()[0] in BARE_METHODS] == [*BARE_METHODS]
    assert [line.split()[0] for line in lines if "_" in line.split(" ")[0]][-len(recipes) :] == [
        recipe.name for recipe in recipes
    ]
    main(["recipes", "mae_micro_mnist"])
    said = capsys.readouterr().out
    assert "5 min on two cores (`pantomim docs results/demo`)" in " ".join(said.split())
    main(["recipes", "beit"])
    assert "--tokenizer" in (said := capsys.readouterr().out)
    assert "beit_vit_base_in1k" in said


@pytest.mark.parametrize("recipe", ["mae_vit_base_in1k", "mae"])
def test_help_is_readable(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    assert "pretrain" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", recipe, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "--optim.base-lr" in said
    assert "None}" not in said
    with pytest.raises(SystemExit):
        main(["pretrain", recipe, "--help-all"])
    assert "--keep" in capsys.readouterr().out


NAMED = [["pretrain", "mae"], ["pretrain", "beit"], ["pretrain", "continue"], ["explain", "dbot_vit_base_in1k"]]
NAMED += [["finetune", "photos"], ["segment", "photos"], ["tokenizer", "train", "vqkd"], ["tokenizer", "encode"]]
NAMED += [["evaluate", protocol.protocol] for protocol in PROTOCOLS] + [["inspect", kind.name] for kind in ANALYSES]


@pytest.mark.parametrize("words", [*([name] for name in COMMANDS), *NAMED], ids=" ".join)
def test_help_fits_a_screen(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 60
    assert "None" not in said
    assert "docs/" not in said


def test_a_bare_method_shows_no_defaults_that_it_does_not_use(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pretrain", "continue", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "pantomim pretrain continue --init INIT --data my_photos/" in said
    assert "micro-batches (default: by size and data)" in said.replace("micro- batches", "micro-batches")


def test_digits_are_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pantomim.data.libraries.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'pantomim\[demo\]'"):
        mnist.__wrapped__()


@pytest.mark.parametrize("page", ["data", "results/gpu"])
def test_documentation_comes_with_the_package(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["docs"])
    assert f"\n{page} " in capsys.readouterr().out
    main(["docs", page])
    assert capsys.readouterr().out.startswith("# ")


def test_a_folder_without_golden_items(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(tmp_path) in fails(capsys, "verify", str(tmp_path))

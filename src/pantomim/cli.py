"""The command line: every option comes from a typed signature or from the config; the only place that prints."""

import difflib
import inspect
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn, TypeVar

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:  # imported where used: `pantomim --help` waits for no model library
    from pantomim.config import Pretrain, Stages
    from pantomim.recipes import Prepared

T = TypeVar("T")
CONSOLE = Console()
ERRORS = Console(stderr=True)
LEAVES = (tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands)


@dataclass(frozen=True)
class RunArguments:
    """Options of `pretrain` and `explain`; the leaves of the config are further options.

    Args:
        recipe: A full name, such as mae_vit_base_in1k, or a bare method, such as mae. See `pantomim recipes`.
        data: An embedded set (mnist), a folder, a zip, an .npz, a text list of files, torchvision:NAME or hf:NAME.
        out: The run folder; an unfinished run of the same config in it is resumed.
        steps: Length in optimiser steps.
        epochs: Length in passes over the data.
        size: Size of the encoder, for a bare method.
        init: Go on from these weights: a run folder, a file, or timm:NAME.
        keep: Checkpoints to keep.
        config: Repeat the run of this config.yaml, instead of naming a recipe.
        target: What is predicted, where the method leaves the choice: mae, beit, cae and what is made of them.
        tokenizer: What gives the tokens: a run of `pantomim tokenizer train`, its tokenizer.safetensors, dalle:FILE,
            dalle:FOLDER, random-projection or random-projection-standardised (also :SEED).
        teacher: Whose features are predicted: random, ema, RUN, FILE, timm:NAME ...; docs/teachers.md has all.
        stages: A chain of so many runs in one folder, each the teacher of the next; steps and epochs are those of one.
        reinit: How each stage but the first begins: full (a new student and optimiser), reference (as dBOT's authors'
            code, which keeps the bias of the patch projection and AdamW's moments), none (the student keeps its
            weights).
        evaluate: Labelled images on which each stage is scored, with k-NN and a linear classifier.
    """

    recipe: Annotated[str | None, tyro.conf.Positional] = None
    data: str | None = None
    out: Path | None = None
    steps: int | None = None
    epochs: float | None = None
    size: Literal["micro", "tiny", "small", "base", "large", "huge"] | None = None
    init: str | None = None
    keep: int | None = None
    config: Path | None = None
    target: Literal["tokens", "pixels", "hog", "features"] | None = None
    tokenizer: str | None = None
    teacher: str | None = None
    stages: int | None = None
    reinit: Literal["full", "reference", "none"] | None = None
    evaluate: str | None = None


def _run_arguments(command: str, arguments: list[str]) -> tuple[RunArguments, "Prepared"]:
    """Parse in two rounds: first what decides the recipe, then the leaves of the config that it gives."""
    from pantomim.config import Pretrain
    from pantomim.recipes import prepare

    arguments = [{"true": "True", "false": "False"}.get(argument, argument) for argument in arguments]
    prog = f"pantomim {command}"
    if "-h" in arguments or "--help" in arguments:
        _print_help(prog, next((argument for argument in arguments if not argument.startswith("-")), None))
    chosen, leaves = tyro.cli(RunArguments, args=arguments, return_unknown_args=True, add_help=False, prog=prog)
    leaves = _checked_leaves(leaves)
    prepared = prepare(
        _named(chosen.recipe),
        data=chosen.data,
        size=chosen.size,
        init=chosen.init,
        steps=chosen.steps,
        epochs=chosen.epochs,
        config=chosen.config,
        target=chosen.target,
        tokenizer=chosen.tokenizer,
        teacher=chosen.teacher,
        stages=chosen.stages,
        reinit=chosen.reinit,
        evaluate=chosen.evaluate,
    )
    name = _named(chosen.recipe) or f"--config {chosen.config}"
    default = _with_kinds(prepared.config, leaves)
    config = tyro.cli(Pretrain, default=default, args=leaves, prog=f"{prog} {name}", config=LEAVES)
    if chosen.keep is not None:
        config = replace(config, runtime=replace(config.runtime, keep=chosen.keep))
    return chosen, replace(prepared, config=config)


def _with_kinds(config: "Pretrain", arguments: list[str]) -> "Pretrain":
    """The config with the kinds of parts that are asked for, so that their leaves can be parsed."""
    from pantomim.config import with_kind

    words = [word for argument in arguments for word in argument.split("=", 1)]
    for option, value in pairwise(words):
        if option.startswith("--") and option.endswith(".kind"):
            config = with_kind(config, option[2:].removesuffix(".kind").replace("-", "_"), value)
    return config


def _print_help(prog: str, name: str | None) -> NoReturn:
    """Print the options and, for a recipe, the leaves of its config; a bare method asks for no data here."""
    from pantomim.config import Pretrain
    from pantomim.recipes import BARE_METHODS, prepare

    if name is None:
        CONSOLE.print(f"{prog} RECIPE --help also lists every leaf of the config.\n", highlight=False)
    with suppress(SystemExit):
        tyro.cli(RunArguments, args=["--help"], prog=prog)
    if name is not None:
        default = BARE_METHODS[name].paper(768) if name in BARE_METHODS else prepare(name).config
        tyro.cli(Pretrain, default=default, args=["--help"], prog=f"{prog} {name}", config=LEAVES)
    sys.exit(0)


def _checked_leaves(arguments: list[str], options: type = RunArguments) -> list[str]:
    """The leaves as they are, with the other unit of a duration unset where one is given.

    Args:
        arguments: What the command's own options have left over.
        options: The command's own options.

    Raises:
        ValueError: naming the nearest option of one that does not exist; before any data are opened.
    """
    from pantomim.config import Pretrain, leaf_names

    names = [*(field.name for field in fields(options)), *leaf_names(Pretrain)]
    given = _given(arguments)
    for name in given:
        if name not in [*names, "help"]:
            close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            raise ValueError(
                f"There is no option --{name}. " + (f"Did you mean --{close[0]}?" if close else "See --help.")
            )
    unset = []
    for duration in ("duration", "optim.warmup"):
        for unit, other in (("steps", "epochs"), ("epochs", "steps")):
            if f"{duration}.{unit}" in given and f"{duration}.{other}" not in given:
                unset += [f"--{duration}.{other}", "None"]
    return arguments + unset


def _named(recipe: str | None) -> str | None:
    """The name, or None: without one, tyro 1.0 reads an empty list in words where further options follow."""
    return None if recipe == "[]" else recipe


def _given(arguments: list[str]) -> list[str]:
    """The dotted names of the options among some words."""
    return [argument.split("=")[0][2:].replace("-", "_") for argument in arguments if argument.startswith("--")]


def pretrain(arguments: list[str]) -> None:
    """Pre-train an encoder: pantomim pretrain RECIPE --data SRC --out RUN [--steps N] [--any.leaf value]."""
    chosen, prepared = _run_arguments("pretrain", arguments)
    if chosen.out is None:
        raise ValueError("pretrain needs a run folder. Add --out RUN, such as --out runs/first.")
    from pantomim.engine.pretrain import pretrain as run

    if (chain := prepared.chain) is not None:
        _pretrain_stages(chain, chosen.out)
        return
    finished = run(prepared.config, chosen.out)
    if int(os.environ.get("RANK", "0")) == 0:
        if finished.already:
            CONSOLE.print(
                f"{chosen.out} is complete and was left as it is. Another --out starts afresh.", highlight=False
            )
        speed = f" at {finished.images_per_s:,.0f} images/s" if finished.images_per_s else ""
        loss = "" if finished.loss is None else f", last loss {finished.loss:.4f}"
        words = f"{finished.steps:,} steps in {finished.wall_s:,.0f} s{speed}{loss}."
        CONSOLE.print(f"{words}\nEncoder: {chosen.out / 'encoder.safetensors'}", highlight=False)


def _pretrain_stages(chain: "Stages", out: Path) -> None:
    from pantomim.study.stages import run_stages

    main = int(os.environ.get("RANK", "0")) == 0

    def say(text: str) -> None:
        if main:
            ERRORS.print(text, markup=False, highlight=False, soft_wrap=True)

    finished = run_stages(chain, out, say)
    if not main:
        return
    if all(stage.already for stage in finished):
        CONSOLE.print(f"{out} is complete and was left as it is. Another --out starts afresh.", highlight=False)
    rows = [
        (f"stage {number}", f"{stage.steps:,} steps in {stage.wall_s:,.0f} s, last loss {stage.loss:.4f}")
        for number, stage in enumerate(finished)
    ]
    _print_section("Stages", rows)
    CONSOLE.print(
        f"\nEncoder of the last stage: {out / 'encoder.safetensors'}. `pantomim report {shlex.quote(str(out))}` makes "
        f"one page of all stages.",
        highlight=False,
        soft_wrap=True,
    )


def explain(arguments: list[str]) -> None:
    """Print what a run would be: pantomim explain RECIPE [--data SRC] [--any.leaf value]; costs nothing."""
    chosen, prepared = _run_arguments("explain", arguments)
    import torch

    from pantomim import explain as explanation

    config = prepared.config
    device = config.runtime.device
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    bf16 = config.runtime.precision == "bfloat16" or (config.runtime.precision == "auto" and on_gpu)
    precision = torch.bfloat16 if bf16 else torch.float32
    CONSOLE.print(f"[bold]{escape(config.recipe)}[/bold]: {escape(prepared.summary)}", highlight=False)
    if prepared.decided:
        _print_section("Decided from the data", prepared.decided)
    if (chain := prepared.chain) is not None:
        from pantomim.study.stages import describe_stages

        _print_section("Stages", describe_stages(chain, chosen.out or Path("RUN")))
    for title, rows in explanation.explain(config, prepared.paper, precision, prepared.notes, prepared.origins):
        _print_section(title, rows)


def _print_section(title: str, rows: Sequence[tuple[str, str]]) -> None:
    CONSOLE.print(f"\n[bold]{escape(title)}[/bold]", highlight=False)
    table = Table.grid(padding=(0, 2, 0, 2))
    table.add_column(no_wrap=True, style="cyan")
    table.add_column()
    for name, value in rows:
        table.add_row(escape(name), escape(value))
    CONSOLE.print(table, highlight=False)


def recipes() -> None:
    """List the recipes with their cost and expected score."""
    from pantomim.recipes import BARE_METHODS, BARE_TOKENIZERS, RECIPES, TOKENIZER_RECIPES

    for title, listed in (("", RECIPES), ("Tokenizers, for pantomim tokenizer train", TOKENIZER_RECIPES)):
        if title:
            CONSOLE.print(f"[bold]{title}[/bold]\n", highlight=False)
        table = Table(box=None, padding=(0, 2, 1, 0), show_edge=False)
        for heading in ("recipe", "what", "cost", "expected score"):
            table.add_column(heading, no_wrap=heading == "recipe")
        for recipe in listed:
            table.add_row(recipe.name, recipe.summary, recipe.cost, recipe.expected)
        CONSOLE.print(table, highlight=False)
    CONSOLE.print(
        f"Bare methods, for any images: {', '.join(BARE_METHODS)} (then --size and the data decide the rest); "
        f"tokenizers: {', '.join(BARE_TOKENIZERS)}.\n"
        "pantomim explain RECIPE tells what a run would be, but not of tokenizers.",
        highlight=False,
    )


# Options of `evaluate` as they were, and what to write now; those of None were options of any protocol.
RENAMED_EVALUATE: dict[tuple[str | None, str], str] = {
    (None, "--protocol"): "evaluate linear_mae",
    ("linear", "--labels-per-class"): "evaluate few_labels --labels-per-class",
    ("linear", "--draws"): "evaluate few_labels --draws",
    ("knn", "--batch-size"): "evaluate knn --chunk",
    (None, "--probe."): "evaluate linear --",
    (None, "--mae."): "evaluate linear_mae --",
    (None, "--attentive."): "evaluate attentive --",
    (None, "--patches."): "evaluate segmentation --",
}


def evaluate(arguments: list[str]) -> None:
    """Score a frozen encoder: pantomim evaluate PROTOCOL --encoder RUN --data SRC; PROTOCOL --help has its options."""
    from pantomim.evaluate import PROTOCOLS, evaluate_to_file, headline

    for option in (f"--{name.replace('_', '-')}" for name in _given(arguments)):
        for (protocol, old), new in RENAMED_EVALUATE.items():
            if protocol in (None, arguments[0]) and (option.startswith(old) if old.endswith(".") else option == old):
                raise ValueError(f"evaluate {option} is now {new}{option.removeprefix(old)}.")
    config = _chosen("evaluate", {protocol.protocol: protocol for protocol in PROTOCOLS}, arguments)
    path, result = evaluate_to_file(config)
    CONSOLE.print(headline(config, result), highlight=False)
    CONSOLE.print(f"Written to {path}.", highlight=False)


def _chosen(command: str, kinds: dict[str, type[T]], arguments: list[str]) -> T:
    """What the first word names of some alternatives, with the options that follow; a list of them if there is none."""
    if not arguments or arguments[0] in ("-h", "--help"):
        rows = [(name, (inspect.getdoc(kind) or "").splitlines()[0]) for name, kind in kinds.items()]
        _print_section(f"pantomim {command}", rows)
        CONSOLE.print(f"\npantomim {command} NAME --help lists the options of each.", highlight=False)
        sys.exit(0)
    name = {known.replace("-", "_"): known for known in kinds}.get(arguments[0].replace("-", "_"))
    if name is None:
        close = difflib.get_close_matches(arguments[0], kinds, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"There are {', '.join(kinds)}."
        raise ValueError(f"There is no {command} {arguments[0]}. {hint}")
    return tyro.cli(kinds[name], args=arguments[1:], prog=f"pantomim {command} {name}", config=LEAVES)


def features(encoder: str, data: str, out: Path, split: str = "all", image_size: tuple[int, int] | None = None) -> None:
    """Write the features of every image to a table.

    Args:
        encoder: A run folder, a file, timm:NAME, open_clip:NAME:TAG, hf:NAME or clip:FILE.
        data: What `pretrain --data` takes.
        out: FILE.npz or FILE.parquet.
        split: train, val, test or all.
        image_size: Height and width at which images are encoded, positions resampled; by default the encoder's own.
    """
    from pantomim.data.sources import open_source
    from pantomim.evaluate.features import check_features_path, extract, resized_encoder, save_features
    from pantomim.formats import load_encoder

    check_features_path(out)
    dataset = open_source(data, split)
    loaded = load_encoder(encoder)
    table = extract(resized_encoder(loaded, image_size or loaded.image_size), dataset)
    save_features(table, out)
    CONSOLE.print(f"{len(table.names):,} rows written to {out}.", highlight=False)
    for item in dataset.broken:
        CONSOLE.print(f"Left out as broken: {escape(item.name)}: {escape(item.reason)}", highlight=False)


def report(run: Annotated[Path, tyro.conf.Positional], headline: str | None = None) -> None:
    """Make RUN/report.html: what was run, curves, pictures, scores.

    Args:
        run: A run folder, or that of a chain of runs.
        headline: The file of RUN/eval whose score stands at the top, such as linear-10-mnist.json.
    """
    from pantomim.analysis.alignment import write_alignment_arrays
    from pantomim.analysis.guidance import write_guidance_arrays
    from pantomim.analysis.reconstructions import write_reconstructions
    from pantomim.config import Pretrain, from_yaml
    from pantomim.report import is_chain, make_report, make_stages_report

    if is_chain(run):
        if headline is not None:
            raise ValueError(f"--headline goes with a single run; got {headline} for the chain {run}. Leave it out.")
        CONSOLE.print(f"Report: {make_stages_report(run)}", highlight=False)
        return
    if (run / "encoder.safetensors").exists():
        try:
            method = from_yaml(Pretrain, run / "config.yaml").method
            write = {"cae": write_alignment_arrays, "cmt_mae": write_guidance_arrays}
            if method.kind != "cmt_mae" or method.masker.guided:  # else nothing is guided, and no pixels are predicted
                write.get(method.kind, write_reconstructions)(run)
        except ValueError as error:  # the data have moved: the rest of the page needs only the folder
            ERRORS.print(f"[bold yellow]no new pictures:[/bold yellow] {escape(str(error))}", highlight=False)
    CONSOLE.print(f"Report: {make_report(run, headline)}", highlight=False)


def stats(source: Annotated[str, tyro.conf.Positional]) -> None:
    """Print size, channels, classes, mean and deviation of a data set.

    Args:
        source: What `pretrain --data` takes.
    """
    from pantomim.data.sources import open_source
    from pantomim.data.stats import channel_stats

    dataset = open_source(source, "train")
    values, facts = channel_stats(dataset), dataset.facts
    sizes = "{}x{}".format(*facts.size) if facts.size else f"mixed, median shorter side {facts.median_shorter_side}"
    rows = [
        ("images for training", f"{len(dataset):,}"),
        ("size", sizes),
        ("channels", f"{facts.channels} of {facts.dtype}"),
        ("classes", str(facts.num_classes or "none: no labels")),
        ("scale", dataset.scale.rule),
        ("mean", " ".join(f"{value:.4f}" for value in values.mean)),
        ("deviation", " ".join(f"{value:.4f}" for value in values.std)),
        ("skipped", f"{dataset.num_ignored} files of other types, {len(dataset.broken)} broken images"),
    ]
    _print_section(source, rows + [("broken", f"{item.name}: {item.reason}") for item in dataset.broken])


def noise(
    color: Annotated[Literal["red", "green", "blue", "purple", "white"], tyro.conf.Positional],
    out: Path | None = None,
    sigma: tuple[float, ...] | None = None,
    passes: int | None = None,
    equalise: bool = True,
    blur: Literal["sampled_kernel", "transfer_function"] = "sampled_kernel",
    patterns: int = 256,
    side: int = 256,
    seed: int = 0,
) -> None:
    """Make a bank of noise patterns for ColorMAE's masks, and print its spectrum.

    Args:
        color: Which filter: red low-pass, blue high-pass, green band-pass, purple band-stop, white none.
        out: FILE.npz; by default the cache, where training looks for it (and would have made it itself).
        sigma: Of the Gaussian, in patches: one number for red and blue, two for green and purple. Default: the preset.
        passes: How often filter and equalisation are repeated; 1 is the paper's equation. Default: the preset.
        equalise: Replace values by their ranks after each pass.
        blur: The Gaussian sampled at whole patches, or its transfer function.
        patterns: How many.
        side: Height and width of each, in patches.
        seed: Of the white noise.
    """
    import numpy as np

    from pantomim.analysis.masks import BAND_EDGES, field_bands
    from pantomim.masking.bank import bank_path, cached_bank, check_bank_path, write_bank
    from pantomim.masking.noise import Noise

    settings = Noise(color, sigma, passes, equalise, blur, patterns, side, seed)
    if out is not None:
        check_bank_path(out)
    bank = cached_bank(settings)
    if out is not None:
        write_bank(out, bank)
    sample = bank[:16].numpy()
    visible = sample > np.quantile(sample, 0.75, axis=(1, 2), keepdims=True)
    bands, shown = field_bands(sample).mean(axis=0), field_bands(visible).mean(axis=0)
    rows = [("cycles a patch", "patterns   highest quarter   (white noise: 1)")] + [
        (f"{low:.2f} to {high:.2f}", f"{power:8.3g}   {of_mask:15.3g}")
        for low, high, power, of_mask in zip(BAND_EDGES[:-1], BAND_EDGES[1:], bands, shown, strict=True)
    ]
    spread, times = settings.resolved
    words = f"sigma {', '.join(f'{value:g}' for value in spread)}, passes {times}, " if spread else ""
    _print_section(f"{color}: {words}{patterns} patterns of {side} x {side}, {bank.nbytes / 1e6:.1f} MB", rows)
    CONSOLE.print(f"\nBank: {out or bank_path(settings)}", highlight=False, soft_wrap=True)


def masks(
    strategies: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    grid: str = "14x14",
    ratio: float = 0.75,
    image: tuple[Path, ...] = (),
    bank: Path | None = None,
    out: Path = Path("masks.html"),
    samples: int = 7,
    draws: int = 2000,
    seed: int = 0,
) -> None:
    """Show what strategies hide, side by side: sample masks, their patterns, spectra and numbers.

    Args:
        strategies: random, white, red, green, blue, purple, block, block_beit, grid or inverse_block; without any:
            random, the four colours and block, or only the bank if one is given.
        grid: Rows and columns of patches, as ROWSxCOLUMNS.
        ratio: Share of hidden patches.
        image: Pictures to lay the masks on.
        bank: An .npz of patterns, such as the authors', as one more strategy.
        out: The page, FILE.html; a picture FILE.png is put beside it.
        samples: Masks shown of each strategy.
        draws: Masks that the numbers are measured on.
        seed: Of the draws.
    """
    from pantomim.analysis.mask_survey import choose_maskers, load_photo, parse_grid, survey
    from pantomim.report.html import check_page_path
    from pantomim.report.mask_gallery import Gallery, write_gallery

    check_page_path("masks", out)
    size = parse_grid(grid)
    if not 1 <= samples <= draws:
        raise ValueError(f"masks.samples must be from 1 to draws; got {samples} of {draws}. Draw more, or show fewer.")
    names = strategies or (() if bank else ("random", "red", "green", "blue", "purple", "block"))
    maskers = choose_maskers(names, ratio, bank)
    photos = [load_photo(path, size) for path in image]
    surveys = []
    with CONSOLE.status("", spinner="line") as status:  # the first time, a colour's patterns take ten seconds
        for name, masker in maskers.items():
            status.update(f"masks of {escape(name)}")
            surveys.append(survey(name, masker, size, num=draws, seed=seed))
        status.update("drawing")
        words = ["pantomim", "masks", *names, "--grid", grid, "--ratio", f"{ratio:g}"]
        words += ["--draws", str(draws), "--samples", str(samples), "--seed", str(seed)]
        words += (["--bank", str(bank)] if bank else []) + (["--image", *map(str, image)] if image else [])
        command = shlex.join(words)
        page, picture = write_gallery(Gallery(surveys, ratio, seed, samples, photos, command), out)
    CONSOLE.print(f"Gallery: {page}, and as a picture: {picture}", highlight=False)


@dataclass(frozen=True)
class TokenizerTrainArguments:
    """Options of `tokenizer train`; the leaves of the config are further options.

    Args:
        recipe: dvae (a discrete auto-encoder) or vqkd (learned from a teacher), for any images, or the full name of a
            recipe, see `pantomim recipes`.
        data: What `pretrain --data` takes.
        out: The run folder; an unfinished run of the same config in it is resumed.
        steps: Length in optimiser steps; the schedules follow it.
        epochs: Length in passes over the data; the schedules follow it.
        size: Size of the networks, for dvae (micro, small, base, paper: the published one's) or vqkd (sizes of
            encoders, as in pretrain).
        teacher: Whose features vqkd predicts: the RUN folder of a pre-training, a FILE of weights, or another network
            that guides, as in pretrain.
        keep: Checkpoints to keep.
        config: Repeat the run of this config.yaml, instead of naming a recipe.
    """

    recipe: Annotated[str | None, tyro.conf.Positional] = None
    data: str | None = None
    out: Path | None = None
    steps: int | None = None
    epochs: float | None = None
    size: Literal["micro", "tiny", "small", "base", "large", "huge", "paper"] | None = None
    teacher: str | None = None
    keep: int | None = None
    config: Path | None = None


@dataclass(frozen=True)
class TokenizerEncodeArguments:
    """Options of `tokenizer encode`.

    Args:
        tokenizer: RUN, dalle:FILE, dalle:FOLDER, random-projection or random-projection-standardised (both also :SEED).
        data: What `pretrain --data` takes.
        out: FILE.npz; ids that are there already are kept if tokenizer, data and transform are the same.
        split: train, val, test or all.
        image_size: Height and width that the tokenizer sees; by default the images', if it is the same for all.
        patch_size: Of a random projection.
        vocabulary: Of a random projection; 8192 unless given.
        batch_size: Images at once.
        device: "auto" takes a GPU if there is one.
    """

    tokenizer: str | None = None
    data: str | None = None
    out: Path | None = None
    split: str = "all"
    image_size: tuple[int, int] | None = None
    patch_size: int | None = None
    vocabulary: int | None = None
    batch_size: int = 128
    device: Literal["auto", "cpu", "cuda"] = "auto"


def tokenizer(arguments: list[str]) -> None:
    """Turn images into ids: pantomim tokenizer train --data SRC --out RUN, or tokenizer encode --tokenizer T ..."""
    commands = {"train": _train_tokenizer, "encode": _encode}
    if not arguments or arguments[0] in ("-h", "--help"):
        rows = [(name, (inspect.getdoc(command) or "").splitlines()[0]) for name, command in commands.items()]
        _print_section("pantomim tokenizer", rows)
        return
    name, rest = arguments[0], arguments[1:]
    if name not in commands:
        raise ValueError(f"tokenizer must be followed by train or encode; got {name}. See pantomim tokenizer --help.")
    commands[name](rest)


def _train_tokenizer(arguments: list[str]) -> None:
    """Train a discrete auto-encoder: pantomim tokenizer train --data SRC --out RUN [--steps N] [--any.leaf value]."""
    from pantomim.config import Pretrain
    from pantomim.recipes import prepare
    from pantomim.recipes.dvae import dvae_paper, fitted

    prog = "pantomim tokenizer train"
    if "-h" in arguments or "--help" in arguments:
        with suppress(SystemExit):
            tyro.cli(TokenizerTrainArguments, args=["--help"], prog=prog)
        tyro.cli(Pretrain, default=dvae_paper(), args=["--help"], prog=prog, config=LEAVES)
    arguments = [{"true": "True", "false": "False"}.get(argument, argument) for argument in arguments]
    chosen, leaves = tyro.cli(
        TokenizerTrainArguments, args=arguments, return_unknown_args=True, add_help=False, prog=prog
    )
    leaves = _checked_leaves(leaves, TokenizerTrainArguments)
    if chosen.out is None:
        raise ValueError("tokenizer train needs a run folder. Add --out RUN, such as --out runs/tokenizer.")
    prepared = prepare(
        _named(chosen.recipe),
        data=chosen.data,
        size=chosen.size,
        teacher=chosen.teacher,
        steps=chosen.steps,
        epochs=chosen.epochs,
        config=chosen.config,
        trains="tokenizer",
    )
    config = tyro.cli(Pretrain, default=prepared.config, args=leaves, prog=prog, config=LEAVES)
    if prepared.num_images is not None:
        config = fitted(config, prepared.num_images, _given(leaves))
    if chosen.keep is not None:
        config = replace(config, runtime=replace(config.runtime, keep=chosen.keep))
    from pantomim.analysis.tokens import PICTURE, write_tokenizer_report
    from pantomim.engine.pretrain import pretrain as run
    from pantomim.tokenizers.usage import usage_warning

    finished = run(config, chosen.out)
    if int(os.environ.get("RANK", "0")) != 0:
        return
    if finished.already:
        CONSOLE.print(f"{chosen.out} is complete and was left as it is. Another --out starts afresh.", highlight=False)
    measured = write_tokenizer_report(chosen.out)
    speed = f" at {finished.images_per_s:,.0f} images/s" if finished.images_per_s else ""
    rows = [
        ("training", f"{finished.steps:,} steps in {finished.wall_s:,.0f} s{speed}, last loss {finished.loss:.4f}"),
        ("codes", str(measured.usage)),
    ]
    if measured.mse is not None:
        words = (
            f"mean squared error {measured.mse:.5f} from hard ids; {measured.mse_of_means:.5f} from each cell's mean"
        )
        rows += [("reconstruction", words), ("picture", str(chosen.out / PICTURE))]
    _print_section("On images that it was not trained on", rows)
    if (warning := usage_warning(measured.usage, f"the tokenizer {chosen.out}")) is not None:
        ERRORS.print(f"[bold yellow]warning:[/bold yellow] {escape(warning)}", highlight=False, soft_wrap=True)
    CONSOLE.print(f"\nTokenizer: {chosen.out}, for --tokenizer {chosen.out}", highlight=False, soft_wrap=True)


def _encode(arguments: list[str]) -> None:
    """Write the id of every cell of every image: pantomim tokenizer encode --tokenizer T --data SRC --out FILE.npz."""
    chosen = tyro.cli(TokenizerEncodeArguments, args=arguments, prog="pantomim tokenizer encode")
    if chosen.data is None or chosen.out is None:
        missing = "--data SRC" if chosen.data is None else "--out FILE.npz"
        raise ValueError(f"tokenizer encode needs a tokenizer, images and a file. Add {missing}.")
    import torch

    from pantomim.analysis.tokens import write_ids
    from pantomim.core.files import check_out
    from pantomim.data.sources import open_source
    from pantomim.tokenizers import load_tokenizer
    from pantomim.tokenizers.usage import usage_warning

    check_out("ids", chosen.out, [".npz"])
    projection = (chosen.tokenizer or "").startswith("random-projection")
    for option, value in (("--patch-size", chosen.patch_size), ("--vocabulary", chosen.vocabulary)):
        if value is not None and not projection:
            raise ValueError(f"{option} goes with random-projection; {chosen.tokenizer} fixes it. Leave it out.")
    if projection and chosen.patch_size is None:
        raise ValueError(f"{chosen.tokenizer} needs the size of its cells. Add --patch-size PIXELS.")
    dataset = open_source(chosen.data, chosen.split)
    found = load_tokenizer(
        chosen.tokenizer,
        patch_size=chosen.patch_size or 16,
        in_chans=dataset.channels,
        vocabulary=chosen.vocabulary or 8192,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids = write_ids(
        found,
        dataset,
        chosen.out,
        image_size=chosen.image_size,
        batch_size=chosen.batch_size,
        device=device if chosen.device == "auto" else chosen.device,
    )
    num_images, rows, cols = ids.ids.shape
    done = "written to" if ids.fresh else "are up to date in"
    CONSOLE.print(
        f"{num_images:,} x {rows} x {cols} ids {done} {chosen.out}: {ids.usage}.", highlight=False, soft_wrap=True
    )
    if (warning := usage_warning(ids.usage, f"the tokenizer {chosen.tokenizer}")) is not None:
        ERRORS.print(f"[bold yellow]warning:[/bold yellow] {escape(warning)}", highlight=False, soft_wrap=True)
    for item in dataset.broken:
        CONSOLE.print(f"Left out as broken: {escape(item.name)}: {escape(item.reason)}", highlight=False)


@dataclass(frozen=True)
class StudyArguments:
    """Options of `study`.

    Args:
        plan: A shipped plan's name, or a file of one's own: FILE.yaml.
        data: What the runs are trained on, and what "{data}" in the plan stands for.
        input: NAME=SRC: what "{NAME}" in the plan stands for. May be repeated.
        scale: Which scale of the plan; the first one by default.
        out: Folder of the study; runs/study-PLAN-SCALE by default. An unfinished study in it is gone on with.
        without: Leave out this evaluation. May be repeated.
        index: Carry out this cell only (for job arrays; see --list).
        minutes: Begin no further cell after so many minutes.
        list: Show the cells, and carry out none.
        table: Make the tables from what is there, and carry out none.
    """

    plan: Annotated[str | None, tyro.conf.Positional] = None
    data: str | None = None
    input: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    scale: str | None = None
    out: Path | None = None
    without: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    index: int | None = None
    minutes: float | None = None
    list: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    table: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


def study(arguments: list[str]) -> None:
    """Compare runs over seeds: pantomim study PLAN --data SRC [--scale NAME] [--index I] [--table]."""
    chosen = tyro.cli(StudyArguments, args=arguments, prog="pantomim study")
    from pantomim.study.cells import expand
    from pantomim.study.page import write_tables
    from pantomim.study.placeholders import read_inputs
    from pantomim.study.plan import load_plan, shipped_plans
    from pantomim.study.run import check_study, open_study, run_study, state

    if chosen.plan is None:
        _print_section("Plans", [(plan.name, " ".join(plan.summary.split())) for plan in shipped_plans().values()])
        CONSOLE.print("\npantomim study PLAN --data SRC carries one out; FILE.yaml is a plan of your own.")
        return
    inputs = read_inputs(chosen.data, chosen.input)
    planned = expand(load_plan(chosen.plan), inputs, source=chosen.plan, scale=chosen.scale, without=chosen.without)
    out = chosen.out or Path("runs", "-".join(filter(None, ["study", planned.plan.name, planned.scale])))
    for warning in planned.warnings:
        ERRORS.print(warning, style="bold yellow", markup=False, highlight=False, soft_wrap=True)
    if chosen.list:
        check_study(planned, out)
        _print_section(
            f"{len(planned.cells)} cells, --index 0 to {len(planned.cells) - 1}",
            [(cell.name, state(cell, out)) for cell in planned.cells],
        )
        return

    def say(text: str) -> None:
        ERRORS.print(text, markup=False, highlight=False, soft_wrap=True)

    failed = []
    if chosen.table:
        open_study(planned, out)
    else:
        say(f"{len(planned.cells)} cells in {out}" + (f", scale {planned.scale}." if planned.scale else "."))
        failed = run_study(planned, out, index=chosen.index, minutes=chosen.minutes, say=say)
    for path in write_tables(planned, out):
        CONSOLE.print(f"Written: {path}", highlight=False, soft_wrap=True)
    left = [cell for cell in planned.cells if state(cell, out) != "finished"]
    if left:
        CONSOLE.print(f"{len(left)} of {len(planned.cells)} cells are not finished.", highlight=False)
    broken = [cell for cell in failed if state(cell, out) == "failed"]
    waiting = [cell for cell in failed if cell not in broken]
    problems = [
        f"{len(cells)} cells {what}: {', '.join(cell.name for cell in cells)}."
        for cells, what in ((broken, "failed"), (waiting, "could not begin"))
        if cells
    ]
    if problems:
        _fail(" ".join(problems), 1)


def verify(folder: Annotated[Path, tyro.conf.Positional]) -> None:
    """Compare our modules with golden tensors made by the authors' code; exit status 1 if any differs.

    Args:
        folder: Holds NAME.json and NAME.safetensors pairs.
    """
    from pantomim import parity

    results = parity.verify(folder)
    for line in parity.format_results(results):
        CONSOLE.print(escape(line), highlight=False, soft_wrap=True)
    if any(result.status == "FAIL" for result in results):
        sys.exit(1)


def import_weights(
    file: Annotated[Path, tyro.conf.Positional],
    out: Path,
    format: str | None = None,
    heads: int | None = None,
    decoder_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> None:
    """Turn a checkpoint of MAE's, BEiT's, CAE's or ColorMAE's authors into our files; any other is refused.

    Args:
        file: The checkpoint.
        out: Folder for encoder.safetensors, encoder.json and what else the file holds.
        format: Whose layout it is, where it cannot be told: mae, beit and cae are their authors'; mmpretrain is
            ColorMAE's.
        heads: Attention heads, for widths that no published model has.
        decoder_heads: The same for the decoder.
        image_size: Height and width in pixels, where they differ.
        mean: Mean of each channel, where they are not three, or where a file of BEiT's does not tell.
        std: Deviation of each channel.
    """
    from pantomim.formats import Given, import_checkpoint

    report = import_checkpoint(file, out, format, Given(heads, decoder_heads, image_size, mean, std))
    CONSOLE.print(escape(str(report)), highlight=False, soft_wrap=True)


def inspect_run(arguments: list[str]) -> None:
    """Look into runs and encoders, side by side: pantomim inspect ANALYSIS RUN [RUN ...]."""
    from pantomim.analysis import ANALYSES, LayerAnalysis
    from pantomim.analysis.alignment import Alignment
    from pantomim.analysis.guidance import Guidance, write_guidance_arrays
    from pantomim.report.html import check_page_path

    analysis = _chosen("inspect", {kind.name: kind for kind in ANALYSES}, arguments)
    if isinstance(analysis, Guidance):
        (run,) = analysis.encoders
        path = write_guidance_arrays(run, images=analysis.images, count=analysis.count, seed=analysis.seed)
        CONSOLE.print(f"Pictures: {path}; `pantomim report {run}` shows them.", highlight=False, soft_wrap=True)
        return
    check_page_path("inspect", analysis.page)
    if isinstance(analysis, Alignment):
        from pantomim.report.alignment import write_alignment

        found = analysis.run()
        page, picture = write_alignment(found, analysis.page)
        _print_section(analysis.title, [(row.title, row.text) for row in found.rows if row.text])
        CONSOLE.print(f"\nPage: {page}, and as a picture: {picture}", highlight=False, soft_wrap=True)
        return
    from pantomim.analysis.block_facts import write_block_facts
    from pantomim.report.inspection import write_inspection

    assert isinstance(analysis, LayerAnalysis)
    facts = analysis.run()
    written = write_block_facts(facts, analysis.page)
    page = write_inspection(facts, analysis.page)
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, title=analysis.title, title_justify="left")
    headings, rows = analysis.table(facts)
    for heading in headings:
        table.add_column(escape(heading))
    for row in rows:
        table.add_row(*map(escape, row))
    CONSOLE.print(table, highlight=False)
    CONSOLE.print(f"\nPage: {page}, numbers: {', '.join(map(str, written))}", highlight=False, soft_wrap=True)


COMMANDS: dict[str, Callable[..., None]] = {
    "pretrain": pretrain,
    "evaluate": evaluate,
    "features": features,
    "report": report,
    "recipes": recipes,
    "explain": explain,
    "tokenizer": tokenizer,
    "stats": stats,
    "noise": noise,
    "masks": masks,
    "inspect": inspect_run,
    "study": study,
    "import": import_weights,
    "verify": verify,
}
TAKE_ARGUMENTS = (pretrain, explain, evaluate, tokenizer, inspect_run, study)  # these read their own arguments


def main(arguments: list[str] | None = None) -> None:
    """Run one command; what a user can mend ends in one message and exit status 2, an interruption in 130."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help"):
        _print_overview()
        return
    if given[0] == "--version":
        from importlib.metadata import version

        CONSOLE.print(f"pantomim {version('pantomim')}", highlight=False)
        return
    name, rest = given[0], given[1:]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        _fail(f"There is no command {name}. " + (f"Did you mean {close[0]}?" if close else "See pantomim --help."), 2)
    command = COMMANDS[name]
    from pantomim.engine.stops import Interrupted, MemoryFullError, NonFiniteError

    try:
        if command in TAKE_ARGUMENTS:
            command(rest)
        else:
            tyro.cli(command, args=rest, prog=f"pantomim {name}", config=LEAVES)
    except Interrupted as stop:
        if int(os.environ.get("RANK", "0")) == 0:  # all processes stop together, and one says so
            ERRORS.print(escape(str(stop)), highlight=False, soft_wrap=True)
        sys.exit(130)
    except KeyboardInterrupt:
        ERRORS.print("Interrupted.")
        sys.exit(130)
    except (ValueError, OSError, NonFiniteError, MemoryFullError) as error:
        if os.environ.get("PANTOMIM_TRACEBACK"):
            raise
        _fail(re.sub(r"\bprepare\.(\w+)", r"--\1", str(error)), 2)  # its arguments are options here


def _fail(message: str, status: int) -> NoReturn:
    ERRORS.print(f"[bold red]error:[/bold red] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(status)


def _print_overview() -> None:
    CONSOLE.print(
        "[bold]pantomim[/bold]: hide parts of images, train a vision transformer to predict them, keep the encoder.\n",
        highlight=False,
    )
    rows = [(name, inspect.getdoc(command).splitlines()[0]) for name, command in COMMANDS.items()]  # type: ignore[union-attr]
    _print_section("Commands", rows)
    CONSOLE.print(
        "\npantomim COMMAND --help tells more. To begin: pantomim pretrain mae --data my_photos/ --out runs/first"
    )

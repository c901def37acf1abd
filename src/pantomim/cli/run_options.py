"""Options that decide a run, and the settings of its config, which are options too."""

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import reduce
from itertools import pairwise
from typing import Any, NoReturn, cast, get_type_hints

import tyro

from pantomim.cli.command_line import LEAVES, CommandLine, given, options_of, values_in
from pantomim.cli.help import check_number, options_in, settings_in, show_help
from pantomim.core.names import did_you_mean

# What people type for settings whose names are not near.
MEANT = {"lr": "optim.base_lr", "learning_rate": "optim.base_lr", "mask_ratio": "method.masker.ratio"}
MEANT |= {"num_workers": "data.workers"}
# Settings that stand for an option, as messages from below name them.
OPTIONS = {"TokenTargetConfig.tokenizer": "tokenizer", "TeacherConfig.source": "teacher"}


def read_run(
    line: CommandLine, verb: Callable[..., Any], without: Collection[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """The arguments of a verb, read in two rounds: the options that decide the recipe; the settings of its config.

    The latter are read once the verb has the config that they change; their names come last.
    """
    options = options_of(verb, without, scale=tyro.conf.arg(name="data.scale"))
    if line.asks_for_help:
        _print_help(line, options)
    answer: Any = line.read(
        options, "prepare", "Pretrain", "Stages", config=(), return_unknown_args=True, add_help=False
    )
    chosen, words = answer
    chosen = {name: None if value == "[]" else value for name, value in chosen.items()}  # tyro 1.0, without a first one
    from pantomim.config import Pretrain, Validation, with_kind

    words = _checked(line, words, [*chosen])
    for name, option in OPTIONS.items():
        if option in chosen:
            line.options.setdefault(name, f"--{option}")
    if "encoder" in chosen:  # what a task starts from has this name there
        line.options |= dict.fromkeys(("prepare.init", "Pretrain.init"), "--encoder")
    prog = f"pantomim {line.command} {chosen.get('recipe') or chosen.get('preset') or ''}".rstrip()

    def settings(config: Pretrain) -> Pretrain:
        if config.validation is None and any(name.startswith("validation.") for name in given(words)):
            config = replace(config, validation=Validation())
        for name, value in values_in(words).items():
            if name.endswith(".kind"):  # another kind of part has other settings
                config = with_kind(config, name.removesuffix(".kind"), value)
        for name, value in values_in(words).items():
            *parts, leaf = name.split(".")
            owner = reduce(lambda of, part: getattr(of, part, None), parts, cast(Any, config))
            check_number(f"--{name}", get_type_hints(type(owner), include_extras=True).get(leaf), value)
        return tyro.cli(Pretrain, default=config, args=words, prog=prog, config=LEAVES)

    return chosen | {"settings": settings}, given(words)


def _checked(line: CommandLine, words: list[str], options: list[str]) -> list[str]:
    """The settings as they are, with the other unit of a duration unset; no data are opened for a mistyped name."""
    from pantomim.config import Pretrain, leaf_owners, other_units

    owners, names = leaf_owners(Pretrain), given(words)
    known = [*options, *owners]
    for name in names:
        if name not in [*known, "help"]:
            hint = did_you_mean(MEANT.get(name, name), known, "See --help.", prefix="--")
            raise ValueError(f"There is no option --{name}.{hint}")
    for leaf, classes in owners.items():
        line.options[leaf] = f"--{leaf}"
        if leaf in names or leaf.count(".") < 2:  # deeper, a class may as well be meant as it lies in a file
            line.options |= {f"{owner}.{leaf.rpartition('.')[2]}": f"--{leaf}" for owner in classes}
    return [*words, *(word for name in other_units(names) for word in (f"--{name}", "None"))]


def _print_help(line: CommandLine, options: Callable[..., Any]) -> NoReturn:
    """The options and, once a word names recipe or data, the settings; no data are asked."""
    named, before = options_in(options, flags=True), ["", *line.arguments]
    words = [word for option, word in pairwise(before) if not (word.startswith("-") or option.startswith("--"))]
    task = line.command in ("finetune", "segment")
    if not words and line.command != "tokenizer train":
        line.examples = [each.replace("RECIPE", "mae") for each in line.examples]
        more = f"pantomim {line.command} {'DATA' if task else 'RECIPE'} --help-all lists every setting of the run, too."
        show_help(line, named, more=more)
    from pantomim.recipes.outline import outline

    preset = next((after for before, after in pairwise(line.arguments) if before == "--preset"), "mae")
    name = f"{line.command}_{preset}" if task else words[0] if words else "dvae"
    found = outline(name)
    needs = "".join(f" --{need} {need.upper()}" for need in found.needs)
    examples = (each.replace("RECIPE", f"{name}{needs}") for each in line.examples)
    line.examples = [each if found.sized else each.replace(" --size micro", "") for each in examples]
    line.command, line.about = line.command if task else f"{line.command} {name}", f"{line.about}. {found.summary}"
    named = [each for each in named if each.name != "recipe"]
    show_help(line, named, [*settings_in(found.config, found.fitted)], needs=found.needs)

"""From a plan to numbered cells: an arm at a seed, with the config of its run and of every evaluation."""

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pantomim.config import Pretrain, from_dict, to_dict
from pantomim.evaluate import Evaluation, protocol_named
from pantomim.recipes import BARE_METHODS, BARE_TOKENIZERS, prepare, trained_by
from pantomim.recipes.dvae import fitted
from pantomim.study.placeholders import check_needs, fill, input_problems, missing, needed_arms, placeholders
from pantomim.study.plan import MINUS, Analysis, Arm, Plan, Scale, merge, refuse, unknown

ENCODER = "RUN"  # stands in an evaluation's config for the run folder of its cell
WITHOUT_ENCODER = ("dvae", "vqkd")  # methods that train something else, for other arms to use


@dataclass(frozen=True)
class Cell:
    """One run and its evaluations."""

    index: int  # from 0; seed by seed, so that early cells already make a comparison
    name: str  # of its folder
    arm: str
    seed: int  # of the run and of its evaluations
    run: Pretrain  # "{run:ARM}" is filled in when it is carried out
    evaluations: dict[str, Evaluation]  # by name; the encoder is filled in when they are carried out
    analyses: tuple[Analysis, ...]
    needs: dict[str, str]  # by arm, the names of the cells whose runs it uses
    pictures: int  # held-out images to reconstruct


@dataclass(frozen=True)
class Study:
    """A plan with all that was left open filled in."""

    plan: Plan
    source: str  # what the user called the plan: its name or its file
    scale: str | None  # None if the plan has none
    inputs: dict[str, str]  # what "{NAME}" stands for
    without: tuple[str, ...]  # evaluations that were left out on purpose
    lacking: dict[str, tuple[str, ...]]  # those left out because inputs are not given, and the names of these
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]  # by index
    arms: tuple[str, ...]  # in the order of the plan, those that train an encoder
    helpers: tuple[str, ...]  # the others, which are there for these
    owners: dict[str, dict[str, str]]  # by baseline, for each arm the one in whose cells it is scored

    @property
    def metrics(self) -> tuple[str, ...]:
        """The columns, without those of evaluations that were left out."""
        left_out = {*self.without, *self.lacking}
        return tuple(
            column
            for column in self.plan.compare.metrics
            if not any(metric.partition(".")[0] in left_out for metric in column.split(MINUS))
        )

    @property
    def evaluations(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(dict.fromkeys(name for cell in self.cells for name in cell.evaluations))

    def of(self, arm: str) -> list[Cell]:
        """The cells of an arm."""
        return [cell for cell in self.cells if cell.arm == arm]

    @property
    def warnings(self) -> list[str]:
        """What is left out because an input is not given."""
        return [
            f"Left out: evaluation {name}, as its input {', '.join(inputs)} is not given. Add the input "
            f"{' '.join(f'{given}=SRC' for given in inputs)} to have it; what is finished stays."
            for name, inputs in self.lacking.items()
        ]

    def command(self, out: Path) -> str:
        """What carries out all of it."""
        words = ["pantomim", "study", self.source]
        for name, value in self.inputs.items():
            words += ["--data", value] if name == "data" else ["--input", f"{name}={value}"]
        words += ["--scale", self.scale] if self.scale else []
        words += [word for name in self.without for word in ("--without", name)]
        return shlex.join([*words, "--out", str(out)])

    def settings(self) -> dict[str, Any]:
        """All that decides the numbers, as plain values: two studies with the same settings are the same study."""
        cells = {cell.arm: cell for cell in self.cells}
        seeds = {arm: [cell.seed for cell in self.of(arm)] for arm in cells}
        runs = {arm: to_dict(cell.run) for arm, cell in cells.items()}
        return {
            "study": self.plan.name,
            "scale": self.scale,
            "inputs": dict(self.inputs),
            "without": [*self.without, *self.lacking],
            "seeds": list(self.seeds),
            "own_seeds": {arm: own for arm, own in seeds.items() if own != list(self.seeds)},
            "reference": self.plan.compare.reference,  # its cells are those that also score the baselines
            "arms": {arm: run | {"runtime": _without(run["runtime"], "seed")} for arm, run in runs.items()},
            "evaluations": {
                arm: {
                    name: _without(to_dict(config), "encoder", "out", "seed", "device")
                    for name, config in cell.evaluations.items()
                }
                for arm, cell in cells.items()
            },
        }


def expand(
    plan: Plan,
    inputs: Mapping[str, str],
    *,
    source: str | None = None,
    scale: str | None = None,
    without: Collection[str] = (),
    out: Path | None = None,
) -> Study:
    """All cells of a plan, every config checked; nothing is read but what a bare method asks of the data.

    What cells in the folder `out` that have begun found of their data is not asked again.

    `inputs` are what "{NAME}" stands for; "data" are the images to train on. `source` is what the user called the plan.
    Without a `scale` it is the first of the plan, if there are any. Evaluations in `without`, and those whose inputs
    are not given, are left out; the study says so (`Study.warnings`).
    """
    refuse(unknown([("Study.scale", scale)] if scale else [], "scales", plan.scales))
    refuse(unknown([("Study.without", name) for name in without], "evaluations", plan.evaluations))
    scale = scale or next(iter(plan.scales), None)
    at = plan.scales[scale] if scale else Scale()
    evaluations = {
        name: merge(settings, at.evaluations.get(name, {}))
        for name, settings in plan.evaluations.items()
        if name not in without
    }
    if not evaluations:
        raise ValueError("Study.without must leave an evaluation; got all of them. Leave fewer out.")
    arms = {name: _arm(plan, at, name) for name in plan.arm_overrides}
    overrides = {name: arm.overrides for name, arm in arms.items()}
    refuse(input_problems(plan, evaluations, overrides, inputs))
    lacking = {name: lacks for name in evaluations if (lacks := missing(evaluations[name], inputs))}
    evaluations = {name: settings for name, settings in evaluations.items() if name not in lacking}
    used = {name: inputs[name] for name in inputs if name in {"data", *placeholders([evaluations, overrides])}}
    evaluations = fill(evaluations, used)
    arms = {name: replace(arm, overrides=fill(arm.overrides, used)) for name, arm in arms.items()}
    runs = {name: _run(plan, name, arm, used, out) for name, arm in arms.items()}
    check_needs(runs)
    seeds = at.seeds or plan.seeds
    encoders = {name: values for name, values in runs.items() if values["method"]["kind"] not in WITHOUT_ENCODER}
    for where, name in plan.compare.named_arms:
        if name not in encoders:
            raise ValueError(f"{where} must name arms that train an encoder; got {name}, which is there for others.")
    owners = _owners(encoders, plan)
    places = _places(arms, seeds)
    cells = []
    for index, ((arm, seed), name) in enumerate(places.items()):
        where = f"of study {plan.name}"
        run = from_dict(Pretrain, merge(runs[arm], {"runtime": {"seed": seed}}), f"arm {arm} {where}")
        contenders = ("trained", *(who for who in plan.baselines if owners[who].get(arm) == arm))
        set_here = {"encoder": ENCODER, "seed": seed, "contenders": contenders}
        configs = {
            key: from_dict(protocol_named(str(own.get("protocol"))), own | set_here, f"evaluation {key} {where}")
            for key, own in evaluations.items()
            if arm in encoders
        }
        analyses = tuple(each for each in plan.analyses if each != "alignment" or run.method.kind == "cae")
        first = seed == (arms[arm].seeds or seeds)[0]
        cells.append(
            Cell(
                index=index,
                name=name,
                arm=arm,
                seed=seed,
                run=run,
                evaluations=configs,
                analyses=analyses if arm in encoders else (),
                needs=_needs(arm, seed, runs[arm], places),
                pictures=plan.pictures if first and arm in encoders else 0,
            )
        )
    return Study(
        plan=plan,
        source=source or plan.name,
        scale=scale,
        inputs=used,
        without=tuple(without),
        lacking=lacking,
        seeds=seeds,
        cells=tuple(cells),
        arms=tuple(encoders),
        helpers=tuple(name for name in runs if name not in encoders),
        owners=owners,
    )


def _places(arms: Mapping[str, Arm], seeds: tuple[int, ...]) -> dict[tuple[str, int], str]:
    """The name of every cell, seed by seed; seeds that only some arms have come first, for others may need them."""
    extra = [seed for arm in arms.values() for seed in arm.seeds or () if seed not in seeds]
    order = [
        (name, seed)
        for seed in dict.fromkeys([*extra, *seeds])
        for name, arm in arms.items()
        if seed in (arm.seeds or seeds)
    ]
    return {(name, seed): f"{index:02d}-{name}-seed{seed}" for index, (name, seed) in enumerate(order)}


def _needs(arm: str, seed: int, run: dict[str, Any], places: dict[tuple[str, int], str]) -> dict[str, str]:
    """By needed arm the name of its cell: the one of the same seed, or its only one."""
    found = {}
    for other in needed_arms(run):
        seeds = [theirs for name, theirs in places if name == other]
        if seed not in seeds and len(seeds) > 1:
            raise ValueError(
                f"Plan.arms.{other}.seeds must be one, or all that {arm} has, which uses it; got {seeds} without "
                f"{seed}. Add it."
            )
        found[other] = places[other, seed if seed in seeds else seeds[0]]
    return found


def _arm(plan: Plan, at: Scale, name: str) -> Arm:
    """An arm at a scale; its settings lie on top of those of all runs."""
    settings = merge(plan.arm_overrides[name], at.arms.get(name, {}))
    # In a plan, what the run is made of (base, size, duration, seeds) stands beside the settings of its config.
    own = {item.name: settings.pop(item.name) for item in fields(Arm) if item.name in settings}
    arm = from_dict(Arm, own | {"overrides": settings}, f"arm {name} of study {plan.name}")
    # The plan's size is for the plan's base, or for another bare one; a full recipe of the arm's own has its size.
    sized = arm.base is None or arm.base in {*BARE_METHODS, *BARE_TOKENIZERS}
    return Arm(
        base=arm.base or at.base or plan.base,
        size=arm.size or (at.size or plan.size if sized else None),
        duration=arm.duration or at.duration or plan.duration,
        seeds=arm.seeds,
        overrides=merge(merge(plan.overrides, at.overrides), arm.overrides),
    )


def _run(plan: Plan, name: str, arm: Arm, inputs: Mapping[str, str], out: Path | None) -> dict[str, Any]:
    """The values of an arm's runs; a wrong key is told in the name of that arm."""
    assert arm.base is not None
    data, begun = inputs.get("data"), [] if out is None else sorted(out.glob(f"cells/*-{name}-seed*/data.json"))
    given: dict[str, Any] = {"data": data, "size": arm.size, "begun": begun[0].parent if begun else None}
    length = {} if arm.duration is None else to_dict(arm.duration)
    if trained_by(arm.base) == "tokenizer":
        tokenizer = prepare(arm.base, trains="tokenizer", **given, **length)
        config = fitted(tokenizer.config, tokenizer.num_images or 0)
    else:
        config = prepare(arm.base, **given, **length).config
    run = from_dict(Pretrain, merge(to_dict(config), arm.overrides), f"arm {name} of study {plan.name}")
    if not run.data.source:
        raise ValueError(f"Study.input must name the images of {arm.base}; got none. Add the input data=SRC.")
    return to_dict(run)


def _owners(runs: dict[str, dict[str, Any]], plan: Plan) -> dict[str, dict[str, str]]:
    """By baseline, for each arm the first one for which it is the same, the reference being the first of all."""
    first = list(dict.fromkeys([plan.compare.reference, *runs]))
    encoders = {arm: values["method"]["encoder"] for arm, values in runs.items()}
    sizes = ("image_size", "patch_size", "in_chans", "heads")  # what a score of raw pixels takes from an encoder
    pixels = {arm: [encoder[key] for key in sizes] for arm, encoder in encoders.items()}
    found: dict[str, dict[str, str]] = {}
    for baseline in plan.baselines:
        looks: dict[str, Any] = {"untrained": encoders, "pixels": pixels}[baseline]
        found[baseline] = {arm: next(other for other in first if looks[other] == looks[arm]) for arm in runs}
    return found


def _without(values: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}

"""Carries out the cells of a study, one after another; what is finished is never run again, what stopped is resumed."""

import gc
import json
import math
import os
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from filelock import LeaseCompromise, SoftFileLease, Timeout

from pantomim.analysis import LAYERS, write_pictures
from pantomim.analysis.alignment import measure_agreement
from pantomim.analysis.block_facts import write_block_facts
from pantomim.analysis.masks import visible_statistics
from pantomim.config import Pretrain, from_dict, leaves, to_dict, to_yaml
from pantomim.core.files import replace_file
from pantomim.core.machine import is_main_process
from pantomim.core.reading import as_kind, read_json, read_yaml
from pantomim.data.sources import place, read_contents
from pantomim.engine.folder import FREE, Finished, RunInUseError, refuse_changes, take_folder
from pantomim.engine.pretrain import pretrain
from pantomim.engine.stops import Interrupted, end_here
from pantomim.evaluate import Memo
from pantomim.evaluate.base import read_scored
from pantomim.study.cells import Cell, Study
from pantomim.study.placeholders import moved, with_runs
from pantomim.study.plan import Analysis

State = Literal["finished", "failed", "started", "not started"]
Say = Callable[[str], None]
PLAN, DATA = "study.yaml", "data.json"
NUM_MASKS = 512  # drawn to describe what an arm masks
POLL_S = 5.0  # between two looks at what other processes do
LOOK_S = 1.0  # within which such a look is over
LEASE_S = 120.0  # without a sign of life for so long, a process on another machine counts as dead
ANALYSES: dict[Analysis, str] = {  # and the file of each
    "alignment": "agreement.json",
    "attention-distance": "attention-distance.npz",
    "spectrum": "spectrum.npz",
}


@dataclass(frozen=True)
class Record:
    """How a cell ended, in cells/NAME.json."""

    state: Literal["finished", "failed"]
    error: str | None = None
    steps: int | None = None
    pretrain_s: float | None = None  # over all starts of the run
    s_per_step: float | None = None  # mean, waiting for data included; without the first step and without saving
    images_per_s: float | None = None
    evaluate_s: dict[str, float] = field(default_factory=dict)  # the first one bears the extraction of features
    masks: dict[str, float] | None = None  # what the masker leaves visible, on average over `NUM_MASKS`


def run_study(
    study: Study, out: Path, *, index: int | None = None, minutes: float | None = None, say: Say = lambda text: None
) -> list[Cell]:
    """Carry out the cells that are not finished, or only that of an `index`; one that fails does not stop the others.

    Several processes, of several machines, may work in the same folder at once: each cell is taken by one of them, and
    all stay until no cell is left, to take over those of processes that die; with an `index` only for a run that its
    cell needs. No further cell is started after so many `minutes`. `say` is told what happens.

    Returns: the cells that failed now, with the reason in their records, and those that lacked another's run.

    Raises `Interrupted` after SIGINT or SIGTERM while training; `ValueError` if there is no such cell, or the folder
    holds something else, or the study with other settings.
    """
    if index is not None and not 0 <= index < len(study.cells):
        raise ValueError(f"Study.index must be in 0 to {len(study.cells) - 1}; got {index}. Choose a cell of the list.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"A study must run in one process; got {os.environ['WORLD_SIZE']}. Start one for each cell.")
    open_study(study, out)
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    cells = {cell.name: cell for cell in study.cells}
    todo = [*study.cells] if index is None else [study.cells[index]]
    lost: list[Cell] = []
    elsewhere: set[str] = set()  # reported as another process's
    failed = {cell.name: _failed_at(cell, out) for cell in todo}  # before: tried again, by one process
    while todo:
        # The first cell that can be carried out, or needs no waiting for; from the start again after each.
        for cell in todo:
            missing = [need for name in cell.needs.values() if not has_run(need := cells[name], out)]
            never = [need for need in missing if need not in todo and not in_use(need, out)]
            if is_finished(cell, out):
                say(f"{cell.name}: finished {'by another process' if cell.name in elsewhere else 'before'}.")
            elif _failed_at(cell, out) not in (None, failed[cell.name]):
                say(f"{cell.name}: failed in another process.")
                lost.append(cell)
            elif never:
                words = ", ".join(f"{need.name} ({state(need, out)})" for need in never)
                say(f"{cell.name}: not started, for it needs the run of {words}.")
                lost.append(cell)
            elif time.monotonic() >= end:
                say(f"{minutes:g} minutes are over: no further cell is started. Run the same command to resume.")
                return lost
            elif missing:
                continue
            elif record := run_cell(cell, out, say):
                if record.state == "failed":
                    say(f"{cell.name}: failed. {record.error}")
                    lost.append(cell)
            else:
                if cell.name not in elsewhere:
                    say(f"{cell.name}: another process works on it.")
                    elsewhere.add(cell.name)
                if index is None:
                    continue  # should that process die, the cell is ours
            todo.remove(cell)
            break
        else:
            time.sleep(POLL_S)
    return lost


def run_cell(cell: Cell, out: Path, say: Say) -> Record | None:
    """Pre-train, evaluate and picture one cell, as far as that is not done; None: another process works on it."""
    path, trace = (out / "cells" / f"{cell.name}.{ending}" for ending in ("json", "traceback.txt"))
    try:
        with _lease(_lock_of(cell, out), LOOK_S):  # another may merely look whether it is in use
            if is_finished(cell, out):  # by another process, since we looked
                return read_record(cell, out)
            try:
                record = _carry_out(cell, out, say)
                trace.unlink(missing_ok=True)  # of an earlier try
            except (Interrupted, RunInUseError):
                raise
            except Exception as error:  # the other cells are worth having; the table shows this one as failed
                record = Record("failed", error=f"{type(error).__name__}: {error}")
                replace_file(trace, "".join(traceback.format_exception(error)).encode())
            replace_file(path, (json.dumps(asdict(record), indent=2) + "\n").encode())
            return record
    except (Timeout, RunInUseError):
        return None
    finally:
        gc.collect()  # the next cell wants the memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def open_study(study: Study, out: Path) -> None:
    """Make the folder of the study, or resume the same study in it, maybe with evaluations added; else `ValueError`."""
    found = _data_of(study)  # which may take minutes, before others wait for the lease
    lock = lease_of(out)
    take_folder("Study", "study", out, PLAN, lock)
    try:
        settings = study.settings()
        if not (out / PLAN).is_file() or _evaluations(settings) != _evaluations(check_study(study, out)):
            text = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=100)
            replace_file(out / PLAN, text.encode())
        (out / "cells").mkdir(exist_ok=True)
        _keep_data(found, out / DATA)
    finally:
        lock.release()


def _data_of(study: Study) -> dict[str, dict[str, Any]]:
    """What identifies the files of each source of a study, by its place."""
    sources = {cell.run.data.source for cell in study.cells}
    sources |= {evaluation.data for cell in study.cells for evaluation in cell.evaluations.values()}
    found = dict[str, dict[str, Any]]()
    for source in sorted(sources):
        with suppress(ValueError):  # the cells tell what is wrong with it
            found[place(source)] = read_contents(source).identity().key
    return found


def _keep_data(now: dict[str, dict[str, Any]], path: Path) -> None:
    """Write down what the sources of a study hold; later cells must find the same, or they could not be compared."""
    kind, advice = dict[str, dict[str, Any]], "Put it back, or choose another folder."
    before = read_json(path, kind, advice) if path.is_file() else {}
    if different := [
        f"\n  {source}: {before[source].get('images')} files there, {now[source]['images']} now"
        for source in now.keys() & before.keys()
        if before[source] != now[source]
    ]:
        raise ValueError(
            f"Study.data must hold the files that the study began with, by name, size and class; got others for "
            f"{path.parent}:{''.join(sorted(different))}\nPut them back, or choose another folder."
        )
    if before.keys() < before.keys() | now.keys():
        replace_file(path, (json.dumps(before | now, indent=2) + "\n").encode())


def check_study(study: Study, out: Path) -> dict[str, Any]:
    """See that a study in the folder, if there is one, is this one; returns its settings, nothing is written.

    Evaluations may be added, for they change no other number; none may be missing, for they are in the table.
    """
    if not (out / PLAN).is_file():
        return {}
    ours = study.settings()
    theirs = as_kind(read_yaml(out / PLAN, "Put it back, or choose another folder."), dict[str, Any])
    here, there = _evaluations(ours), _evaluations(theirs)
    fewer = [] if {*there} <= {*here} else [f"evaluations: {', '.join(there)} there, {', '.join(here)} here"]
    shared = {*here} & {*there}
    refuse_changes("Study", "study", out / PLAN, _leaves(theirs, shared), _leaves(ours, shared), _is_free, fewer)
    return theirs


def is_finished(cell: Cell, out: Path) -> bool:
    """Whether run and all evaluations are there."""
    record = read_record(cell, out)
    if record is None or record.state != "finished":
        return False
    paths = [*result_paths(cell, out).values(), *analysis_paths(cell, out).values()]
    return has_run(cell, out) and all(path.is_file() for path in paths)


def has_run(cell: Cell, out: Path) -> bool:
    """Whether its run is complete, so that others can use it."""
    return (cell_folder(cell, out) / "finished.json").is_file()


def in_use(cell: Cell, out: Path) -> bool:
    """Whether a process works on it."""
    try:
        with _lease(_lock_of(cell, out)):
            return False
    except Timeout:
        return True


def state(cell: Cell, out: Path) -> State:
    """How far a cell has come."""
    if is_finished(cell, out):
        return "finished"
    record = read_record(cell, out)
    if record is not None and record.state == "failed":
        return "failed"
    return "started" if (cell_folder(cell, out) / "config.yaml").exists() else "not started"


def read_record(cell: Cell, out: Path) -> Record | None:
    """How a cell ended, if it has."""
    try:
        advice = "Remove it, and run the same command: what is finished stays."
        found: Record = read_json(out / "cells" / f"{cell.name}.json", Record, advice)
        return found
    except FileNotFoundError:
        return None


def cell_folder(cell: Cell, out: Path) -> Path:
    """The run folder of a cell."""
    return out / "cells" / cell.name


def result_paths(cell: Cell, out: Path) -> dict[str, Path]:
    """Where the results of its evaluations are, by name."""
    return {name: cell_folder(cell, out) / "eval" / f"{name}.json" for name in cell.evaluations}


def analysis_paths(cell: Cell, out: Path) -> dict[Analysis, Path]:
    """Where the results of its analyses are, by name."""
    return {name: cell_folder(cell, out) / "analysis" / ANALYSES[name] for name in cell.analyses}


def train(planned: Pretrain, folder: Path, uses: Mapping[str, Path]) -> Finished:
    """Carry out a run, or resume it, or leave it if it is complete; raises what `pretrain` does.

    "{run:NAME}" in its config stands for the folder `uses[NAME]`. These may have moved since the run was started: then
    its config.yaml names their old places, and is put right. That they hold the same weights, its checkpoint knows.
    """
    values, written = to_dict(planned), folder / "config.yaml"
    if uses and written.is_file() and is_main_process():
        theirs = read_yaml(written)
        if (put_right := moved(theirs, values, uses)) != theirs:
            replace_file(written, to_yaml(from_dict(Pretrain, put_right, str(folder))).encode())
    return pretrain(from_dict(Pretrain, with_runs(values, uses), folder.name), folder)


def _failed_at(cell: Cell, out: Path) -> int | None:
    """When a cell failed, to tell one failure from another; None: it has not."""
    if (record := read_record(cell, out)) is None or record.state != "failed":
        return None
    return (out / "cells" / f"{cell.name}.json").stat().st_mtime_ns


def lease_of(out: Path) -> SoftFileLease:
    """The lock of a study's own folder, which one process at a time writes to, and clears of what killed ones left."""
    return _lease(out / ".lease", 2 * LEASE_S)


def _lock_of(cell: Cell, out: Path) -> Path:
    return out / "cells" / f".{cell.name}.lease"


@cache  # it remembers for how long it has seen no sign of life of another
def _lease(path: Path, timeout_s: float = 0) -> SoftFileLease:
    """A lock that holds on network file systems, where those of the system may not: a file that is made by one alone.

    Its process touches it now and then; if that died, this machine has it at once, others after `LEASE_S`.
    """
    return SoftFileLease(path, lease_duration=LEASE_S, timeout=timeout_s, on_compromise=_end)


def _end(lost: LeaseCompromise) -> None:
    """Another process may have taken the cell over by now, so that this one must not write another byte."""
    words = f"{lost.lock_file} is no longer this process's ({lost.reason}), which ends. Run the same command to resume."
    end_here(75, words)  # EX_TEMPFAIL


def _carry_out(cell: Cell, out: Path, say: Say) -> Record:
    folder = cell_folder(cell, out)
    if not has_run(cell, out):
        say(f"{cell.name}: pre-training.")
    uses = {arm: (out / "cells" / name).resolve() for arm, name in cell.needs.items()}
    finished = train(cell.run, folder, uses)
    evaluate_s = {}
    memo = Memo()
    for name, path in result_paths(cell, out).items():
        if path.is_file():
            result = read_scored(path)
        else:
            say(f"{cell.name}: evaluation {name}.")
            config = replace(cell.evaluations[name], encoder=str(folder), out=path)
            result = config.to_file(memo)[1]
        evaluate_s[name] = float(result["wall_s"])
    for analysis, path in analysis_paths(cell, out).items():
        if path.is_file():
            continue
        say(f"{cell.name}: analysis {analysis}.")
        if analysis == "alignment":
            replace_file(path, (json.dumps(measure_agreement(folder), indent=2) + "\n").encode())
        else:
            write_block_facts(LAYERS[analysis]((str(folder),)).run(), path)
    if cell.pictures:
        try:
            write_pictures(folder, count=cell.pictures)
        except ValueError as error:  # tokens that nobody can decode, say; the numbers are worth having
            say(f"{cell.name}: no pictures. {error}")
    spent = f"{finished.wall_s:,.0f} s of pre-training, {sum(evaluate_s.values()):,.0f} s of evaluation"
    say(f"{cell.name}: finished, {spent}.")
    speed = finished.images_per_s
    return Record(
        state="finished",
        steps=finished.steps,
        pretrain_s=finished.wall_s,
        s_per_step=cell.run.batch_size / speed if speed else None,
        images_per_s=speed,
        evaluate_s=evaluate_s,
        masks=_describe_masks(cell),
    )


def _describe_masks(cell: Cell) -> dict[str, float] | None:
    """What the masker leaves visible; None where the method has none, or it depends on the image."""
    method = cell.run.method
    masker, encoder = getattr(method, "masker", None), getattr(method, "encoder", None)
    if masker is None or encoder is None or masker.guided:
        return None
    grid = encoder.grid
    masked = masker(NUM_MASKS, grid, torch.Generator().manual_seed(cell.seed)).masked
    found = visible_statistics(~masked.view(NUM_MASKS, *grid).numpy())
    means = {"clusters": found.num_clusters, "neighbours": found.neighbours, "distance": found.mean_distance}
    return {"ratio": float(masked.float().mean())} | {name: float(values.mean()) for name, values in means.items()}


def _evaluations(settings: Mapping[str, Any]) -> list[str]:
    """Their names; every arm has the same."""
    return list(dict.fromkeys(name for configs in settings["evaluations"].values() for name in configs))


def _leaves(settings: Mapping[str, Any], shared: set[str]) -> dict[str, Any]:
    """By dotted name, without evaluations that only one of two studies has."""
    evaluations = {
        arm: {name: config for name, config in configs.items() if name in shared}
        for arm, configs in settings["evaluations"].items()
    }
    return leaves({**settings, "evaluations": evaluations})


def _is_free(key: str) -> bool:
    """Whether a setting changes no result: how a run is carried out, or an input, which is part of all that uses it."""
    of_a_run = key.startswith("arms.") and any(key.endswith(f".{free}") for free in FREE)
    return of_a_run or key == "without" or key.startswith("inputs.")

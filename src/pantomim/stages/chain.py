"""Carries out a chain of runs in one folder; what is finished is left as it is, what was stopped goes on.

RUN/stages.yaml      the plan
RUN/stage-0 ...      ordinary run folders, with the scores of each stage in eval/
RUN/encoder.*        the last stage's encoder, once the chain is complete, and what else belongs to that run
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from pantomim.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from pantomim.config import Pretrain, Stages, from_yaml, leaves, to_dict, to_yaml
from pantomim.core.files import replace_file
from pantomim.engine.folder import FREE, Finished, RunInUseError
from pantomim.engine.initial import carry_over
from pantomim.engine.pretrain import pretrain
from pantomim.engine.record import Clock
from pantomim.engine.runtime import Purpose, random_seed
from pantomim.engine.setup import adamw
from pantomim.engine.stops import explain_disk
from pantomim.evaluate import Memo, evaluate_to_file, headline
from pantomim.evaluate.base import Contender
from pantomim.evaluate.knn import KNN
from pantomim.evaluate.linear import Linear
from pantomim.evaluate.parts import open_labelled
from pantomim.methods.base import Method
from pantomim.stages.plan import check_widths, first_width, stage_folder, stage_run

Say = Callable[[str], None]
PLAN = "stages.yaml"
# Of the last stage, besides its encoder: with it the chain's folder is read like that run's.
PARTS = ("encoder", "decoder", "predictor")
CHAIN_FREE = frozenset({"stages", "evaluate"} | {f"run.{name}" for name in FREE})


def run_stages(plan: Stages, out: Path, say: Say = lambda text: None) -> list[Finished]:
    """Carry out the stages that are not finished, score them, and put the last one's encoder into the folder.

    More stages than before go on from the last one; scores that are there are not measured again.

    Args:
        plan: What to carry out.
        out: A new folder, or that of the same chain.
        say: Is told what happens.

    Returns: what each stage said at its end.

    Raises:
        ValueError: if the plan cannot be carried out, or the folder holds something else or another chain.
        RunInUseError: if another process works in the folder.
        Interrupted: after SIGINT or SIGTERM while training; and what else `pretrain` raises.
    """
    runs = [stage_run(plan, number, out) for number in range(plan.stages)]
    main, alone = int(os.environ.get("RANK", "0")) == 0, int(os.environ.get("WORLD_SIZE", "1")) == 1
    if plan.reinit == "reference" and not (stage_folder(out, 0) / "finished.json").is_file():
        check_widths(plan, first_width(plan))  # else it would fail when a stage is trained
    if plan.evaluate is not None:
        open_labelled(plan.evaluate)  # labels are missed before training, not after it
    lock = FileLock(out / ".stages.lock", timeout=0)
    if main:
        _take_up(plan, out, lock)
    try:
        finished, memo = [], Memo()
        for number, run in enumerate(runs):
            folder = stage_folder(out, number)
            if main:
                _follow_a_move(run, folder)
                if plan.reinit == "reference" and number:
                    _hand_on(runs[number - 1], stage_folder(out, number - 1), run, folder)
            say(f"Stage {number} of 0 to {plan.stages - 1}: {folder}")
            finished.append(pretrain(run, folder))
            if alone and plan.evaluate is not None:
                _score(plan, out, number, memo, say)
        if main:
            if not alone and plan.evaluate is not None:  # at the end: other processes would wait too long
                for number in range(plan.stages):
                    _score(plan, out, number, memo, say)
            _publish(stage_folder(out, plan.stages - 1), out)
    finally:
        lock.release()
    return finished


def _take_up(plan: Stages, out: Path, lock: FileLock) -> None:
    """Make the folder and write the plan, or see that the same plan is there."""
    written = out / PLAN
    try:
        out.mkdir(parents=True, exist_ok=True)
        others = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
        if others and PLAN not in others:
            raise ValueError(
                f"Stages.out must be a new folder or that of a chain; got {out}, which holds {', '.join(others[:5])} "
                f"and no {PLAN}. Give another --out."
            )
        lock.acquire()
    except Timeout:
        raise RunInUseError(
            f"Stages.out must not be in use; got {out}, which another pantomim process is working on. Wait for it, or "
            f"give another --out."
        ) from None
    except OSError as error:
        raise ValueError(
            f"Stages.out must be a folder that can be written to; got {out} ({error.strerror or error}). Give another "
            f"--out."
        ) from error
    try:
        if written.is_file() and any(out.glob("stage-*/metrics.jsonl")):
            _refuse_another(plan, from_yaml(Stages, written), written)
        with explain_disk(out):
            if not written.is_file() or from_yaml(Stages, written) != plan:
                replace_file(written, to_yaml(plan).encode())
            if not (stage_folder(out, plan.stages - 1) / "finished.json").is_file():
                (out / "finished.json").unlink(missing_ok=True)  # of a chain that grows
    except BaseException:
        lock.release()
        raise


def _refuse_another(plan: Stages, there: Stages, written: Path) -> None:
    ours, theirs = leaves(to_dict(plan)), leaves(to_dict(there))
    different = [
        f"\n  {key}: {theirs.get(key)} there, {ours.get(key)} here"
        for key in dict.fromkeys([*theirs, *ours])
        if key not in CHAIN_FREE and theirs.get(key) != ours.get(key)
    ]
    if plan.stages < there.stages:
        different.append(f"\n  stages: {there.stages} there, {plan.stages} here; a chain can only grow")
    if different:
        raise ValueError(
            f"Stages.out must hold no chain of another config; got {written.parent}, which differs in:"
            f"{''.join(different)}\nGive another --out, or go on as it was with --config {written}."
        )


def _follow_a_move(run: Pretrain, folder: Path) -> None:
    """Where a chain has been moved, a stage's config names its teacher where it was: write where it is now.

    That it is the same teacher, the checkpoint of the stage knows.
    """
    written = folder / "config.yaml"
    if not written.is_file():
        return
    ours, theirs = leaves(to_dict(run)), leaves(to_dict(from_yaml(Pretrain, written)))
    moved = {name for name in ours if name not in FREE and ours[name] != theirs.get(name)}
    places = {name for name in ours if name == "init" or name.endswith("teacher.source")}
    if moved and moved <= places and all(_same_stage(ours[name], theirs.get(name)) for name in moved):
        replace_file(written, to_yaml(run).encode())


def _same_stage(here: str | None, there: str | None) -> bool:
    """Whether two places are both that of one stage, perhaps of a chain that has been moved."""
    return None not in (here, there) and Path(here or "").name == Path(there or "").name


def _hand_on(before: Pretrain, from_folder: Path, run: Pretrain, folder: Path) -> None:
    """Begin a stage as the authors' code does: step 0 of a new student, with what that code does not reset.

    Raises:
        ValueError: as `carry_over`.
    """
    checkpoints = folder / "checkpoints"
    if any(checkpoints.glob("step-*")):
        return
    last = find_checkpoint(from_folder / "checkpoints")
    assert last is not None, "a finished run keeps its last checkpoint"
    with torch.random.fork_rng(devices=[]):
        old, old_optimizer = _built(before)
        new, new_optimizer = _built(run)
    load_checkpoint(last, old, old_optimizer)
    carry_over(old, old_optimizer, new, new_optimizer, str(from_folder))
    with explain_disk(folder):
        replace_file(folder / "config.yaml", to_yaml(run).encode())
    save_checkpoint(checkpoints, new, new_optimizer, step=0, seed=run.runtime.seed, progress=Clock().progress(), keep=1)


def _built(run: Pretrain) -> tuple[Method, torch.optim.AdamW]:
    """A method as `pretrain` begins with it, and its optimiser."""
    torch.manual_seed(random_seed(run.runtime.seed, 0, Purpose.WEIGHTS))
    method = run.method.build()
    return method, adamw(run.optim, method, run.optim.base_lr)


def _score(plan: Stages, out: Path, number: int, memo: Memo, say: Say) -> None:
    """k-NN and a linear classifier on a stage's encoder; beside the first, a random-init encoder and raw pixels."""
    data, folder, runtime = plan.evaluate, stage_folder(out, number), plan.run.runtime
    assert data is not None
    contenders: tuple[Contender, ...] = ("trained", "untrained", "pixels") if number == 0 else ("trained",)
    sha256 = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))["sha256"]
    done = set()
    for file in (folder / "eval").glob("*.json"):
        there = json.loads(file.read_text(encoding="utf-8"))
        if there["data"].get("spec") == data and there["encoder_sha256"] == sha256:
            done.add(there["protocol"])
    for protocol in (KNN, Linear):
        if protocol.protocol not in done:
            evaluation = protocol(
                encoder=str(folder), data=data, contenders=contenders, seed=runtime.seed, device=runtime.device
            )
            _, result = evaluate_to_file(evaluation, memo)
            say(f"Stage {number}, {headline(evaluation, result)}")


def _publish(last: Path, out: Path) -> None:
    """Put the last stage's encoder, and what belongs to it, beside the plan; nothing is written anew that is there."""
    with explain_disk(out):
        files = [f"{part}.{kind}" for part in PARTS for kind in ("safetensors", "json")]
        for name in (*files, "config.yaml", "finished.json"):
            source, copied = last / name, out / name
            if not source.is_file():
                copied.unlink(missing_ok=True)
            elif not copied.is_file() or copied.read_bytes() != source.read_bytes():
                replace_file(copied, source.read_bytes())

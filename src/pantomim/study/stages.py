"""A chain of runs in one folder: the student of each stage is the teacher of the next; files: `docs/stages.md`."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch._subclasses.fake_tensor import FakeTensorMode

from pantomim.checkpoint import Progress, find_checkpoint, load_checkpoint, save_checkpoint
from pantomim.config import Pretrain, Stages, from_dict, from_yaml, leaves, to_dict, to_yaml
from pantomim.core.files import replace_file
from pantomim.core.machine import is_main_process
from pantomim.engine.folder import FREE, Finished, refuse_changes, take_folder
from pantomim.engine.initial import carry_over
from pantomim.engine.runtime import Purpose, random_seed
from pantomim.engine.setup import optimiser
from pantomim.evaluate import Memo
from pantomim.evaluate.base import Contender, read_scored
from pantomim.evaluate.knn import KNN
from pantomim.evaluate.linear import Linear
from pantomim.evaluate.parts import open_labelled
from pantomim.formats.native import read_description
from pantomim.methods.base import Method
from pantomim.methods.guides import teacher_of, with_teacher
from pantomim.study.placeholders import with_runs
from pantomim.study.run import Say, train
from pantomim.teachers.encoder import Output

PLAN = "stages.yaml"
CHAIN = "{run:chain}"  # stands for the chain's folder in the plan of a stage
# Of the last stage, besides its encoder: with it the chain's folder is read like that run's.
PARTS = ("encoder", "decoder", "predictor")
STARTS = {  # a stage but the first, by `Stages.reinit`
    "full": "a new student and a new optimiser",
    "reference": "a new student that keeps the bias of its patch projection; AdamW's moments are kept",
    "none": "the student keeps its weights; a new optimiser",
}
CHAIN_FREE = frozenset({"stages", "evaluate"} | {f"run.{name}" for name in FREE})


def run_stages(plan: Stages, out: Path, say: Say = lambda text: None) -> list[Finished]:
    """Carry out the stages that are not finished, score them, and put the last one's encoder into the folder.

    More stages than before follow on the last one; scores that are there are not measured again. `say` is told what
    happens.

    Raises what `pretrain` does, and `ValueError` too if the folder holds something else or another chain.
    """
    runs = [stage_run(plan, number, Path(CHAIN)) for number in range(plan.stages)]
    main, alone = is_main_process(), int(os.environ.get("WORLD_SIZE", "1")) == 1
    if plan.reinit == "reference" and not (stage_folder(out, 0) / "finished.json").is_file():
        first_width(plan)  # fails now rather than when the second stage is trained
    if plan.evaluate is not None:
        open_labelled(plan.evaluate)  # labels are missed before training, not after it
    lock = FileLock(out / ".stages.lock", timeout=0)
    if main:
        take_folder("Stages", "chain", out, PLAN, lock)
    try:
        if main:
            _write_plan(plan, out)
        finished, memo = [], Memo()
        for number, run in enumerate(runs):
            if main and plan.reinit == "reference" and number:
                _hand_over(runs[number - 1], run, out, number)
            say(f"Stage {number + 1} of {plan.stages}: {stage_folder(out, number)}")
            finished.append(train(run, stage_folder(out, number), {"chain": out}))
            # Several processes score all stages at the end: between two, the others would wait too long.
            if main and plan.evaluate is not None and (alone or run is runs[-1]):
                for trained in range(number + 1):
                    _score(plan, plan.evaluate, out, trained, memo, say)
        if main:
            _publish(stage_folder(out, plan.stages - 1), out)
    finally:
        lock.release()
    return finished


def stage_folder(out: Path, number: int) -> Path:
    """The run folder of a stage, counted from 0."""
    return out / f"stage-{number}"


def stage_run(plan: Stages, number: int, out: Path) -> Pretrain:
    """The run of a stage, counted from 0, in the folder of a chain.

    A later stage's teacher is the encoder before: the output of its last block, or of its norm if that of the first
    teacher was used, whose depth and projection are its own. Every stage has another seed, for weights, order of the
    data, crops and masks. Weights to start from (`init`) are those of the first stage.
    """
    teacher = teacher_of(plan.run.method)
    if teacher is None:
        raise ValueError(
            f"Stages.run must be of a method with a teacher; got {plan.run.recipe}, a run of {plan.run.method.kind}, "
            f"which has none. Leave stages out, or name a recipe of dbot."
        )
    if number == 0:
        return plan.run
    if teacher.source == "ema":
        raise ValueError(
            f"Stages.stages must be 1 for an EMA teacher, which leaves the next stage nothing; got {plan.stages} with "
            f"ema. Leave stages out, or name another teacher."
        )
    before = str(stage_folder(out, number - 1))
    output: Output = "norm" if teacher.output == "norm" else "block"
    led = replace(teacher, source=before, depth=None, output=output, momentum=None)
    return replace(
        plan.run,
        method=with_teacher(plan.run.method, led),
        runtime=replace(plan.run.runtime, seed=stage_seed(plan.run.runtime.seed, number)),
        init=before if plan.reinit == "none" else None,
    )


def stage_seed(seed: int, number: int) -> int:
    """The seed of a stage; of the first it is the chain's own."""
    return seed if number == 0 else int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def first_width(plan: Stages) -> int | None:
    """Width of the first teacher's features, for which it is read; None: none is named yet.

    AdamW's moments can be kept (`reinit` reference) only where the decoder keeps its size.
    """
    method: Any = plan.run.method
    teacher = teacher_of(method)
    if teacher is None or not teacher.source:
        return None
    if teacher.source in ("random", "ema"):
        return method.encoder.width
    with FakeTensorMode():
        student = method.encoder.build()  # whose sizes are asked for
    width = teacher.build(student).width
    if plan.reinit == "reference" and plan.stages > 1 and width != method.encoder.width:
        raise ValueError(
            f"Stages.reinit must be full or none where the first teacher is not as wide as the student, as the head of "
            f"the second stage has another size then and AdamW's moments do not fit; got reference, a teacher {width} "
            f"wide and a student {method.encoder.width} wide. Use full."
        )
    return width


def describe_stages(plan: Stages, out: Path) -> list[tuple[str, str]]:
    """Who teaches whom, stage by stage, how wide the targets are, and how each starts; for `pantomim explain`."""
    width = first_width(plan)
    student: Any = plan.run.method
    rows = []
    for number in range(plan.stages):
        run = stage_run(plan, number, out)
        teacher: Any = teacher_of(run.method)
        depths = {None: "", 0: ", no block: projected patches and positions"}
        blocks = depths.get(teacher.depth, f", {teacher.depth} blocks")
        blocks += f", mean of the last {teacher.blocks} blocks" if teacher.blocks > 1 else ""
        start = STARTS[plan.reinit] if number else f"from {run.init}" if run.init else "a new student"
        wide = student.encoder.width if number else width
        predicts = "the features of a teacher to be named" if wide is None else f"features of width {wide}"
        text = f"teacher: {teacher.source}{blocks}, output {teacher.output}; {start}, seed {run.runtime.seed}; "
        rows.append((f"stage {number}", f"{text}{run.duration}, the rate from 0 again; predicts {predicts}"))
    scored = f"k-NN and linear on {plan.evaluate} after each stage" if plan.evaluate else "not scored on the way"
    return [*rows, ("scores", scored), ("last encoder", f"{out / 'encoder.safetensors'}, that of the last stage")]


def _write_plan(plan: Stages, out: Path) -> None:
    """Write the plan, or see that the same one is there; it can only grow."""
    written = out / PLAN
    there = from_yaml(Stages, written) if written.is_file() else None
    if there is not None and any(out.glob("stage-*/metrics.jsonl")):
        fewer = f"stages: {there.stages} there, {plan.stages} here; a chain can only grow"
        more = [fewer] if plan.stages < there.stages else []
        theirs, ours = leaves(to_dict(there)), leaves(to_dict(plan))
        refuse_changes("Stages", "chain", written, theirs, ours, CHAIN_FREE.__contains__, more)
    if there != plan:
        replace_file(written, to_yaml(plan).encode())
    if not (stage_folder(out, plan.stages - 1) / "finished.json").is_file():
        (out / "finished.json").unlink(missing_ok=True)  # of a chain that grows


def _hand_over(before: Pretrain, run: Pretrain, out: Path, number: int) -> None:
    """Start a stage as the authors' code does: step 0 of a new student, with what that code does not reset."""
    folder, from_folder = stage_folder(out, number), stage_folder(out, number - 1)
    checkpoints = folder / "checkpoints"
    if any(checkpoints.glob("step-*")) or (folder / "finished.json").is_file():
        return
    if (last := find_checkpoint(from_folder / "checkpoints")) is None:
        raise ValueError(
            f"Stages.reinit reference must have the last checkpoint of the stage before; got none in {from_folder}. "
            f"Put it back, or begin a chain in another folder."
        )
    before, run = (from_dict(Pretrain, with_runs(to_dict(stage), {"chain": out}), "stage") for stage in (before, run))
    with torch.random.fork_rng(devices=[]):
        old, old_optimizer = _built(before)
        new, new_optimizer = _built(run)
    load_checkpoint(last, old, old_optimizer)
    carry_over(old, old_optimizer, new, new_optimizer, str(from_folder))
    replace_file(folder / "config.yaml", to_yaml(run).encode())
    save_checkpoint(checkpoints, new, new_optimizer, step=0, seed=run.runtime.seed, progress=Progress(), keep=1)


def _built(run: Pretrain) -> tuple[Method, torch.optim.Optimizer]:
    """A method as `pretrain` starts with it, and its optimiser."""
    torch.manual_seed(random_seed(run.runtime.seed, 0, Purpose.WEIGHTS))
    method = run.method.build()
    return method, optimiser(run.optim, method, run.optim.base_lr)


def _score(plan: Stages, data: str, out: Path, number: int, memo: Memo, say: Say) -> None:
    """k-NN and a linear classifier on a stage's encoder; beside the first, the same one untrained and raw pixels."""
    folder, runtime = stage_folder(out, number), plan.run.runtime
    contenders: tuple[Contender, ...] = ("trained", "untrained", "pixels") if number == 0 else ("trained",)
    sha256 = read_description(folder)["sha256"]
    results = [read_scored(file) for file in (folder / "eval").glob("*.json")]
    for protocol in (KNN, Linear):
        settings: dict[str, Any] = {"contenders": contenders, "seed": runtime.seed, "device": runtime.device}
        settings["scale"] = plan.run.data.scale if data == plan.run.data.source else None
        evaluation = protocol(encoder=str(folder), data=data, **settings)
        key, wanted = evaluation.open(memo).key(), (protocol.protocol, data, sha256)
        if not any(
            (found.get("protocol"), found["data"].get("spec"), found.get("encoder_sha256")) == wanted
            and found["data"].get("key", key) == key
            for found in results
        ):
            _, result = evaluation.to_file(memo)
            say(f"{folder.name}, {evaluation.headline(result)}")


def _publish(last: Path, out: Path) -> None:
    """Put the last stage's encoder, and what belongs to it, beside the plan; nothing is written anew that is there."""
    files = [f"{part}.{kind}" for part in PARTS for kind in ("safetensors", "json")]
    for name in (*files, "config.yaml", "finished.json"):
        source, copied = last / name, out / name
        if not source.is_file():
            copied.unlink(missing_ok=True)
        elif not copied.is_file() or copied.read_bytes() != source.read_bytes():
            replace_file(copied, source.read_bytes())

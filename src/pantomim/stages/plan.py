"""What each stage of a chain is: an ordinary run, made from the first one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch._subclasses.fake_tensor import FakeTensorMode

from pantomim.config import Pretrain, Stages
from pantomim.methods.guides import teacher_of, with_teacher
from pantomim.teachers.choice import TeacherConfig
from pantomim.teachers.encoder import Output


def stage_folder(out: Path, number: int) -> Path:
    """The run folder of a stage, counted from 0."""
    return out / f"stage-{number}"


def stage_run(plan: Stages, number: int, out: Path) -> Pretrain:
    """The run of a stage, counted from 0, in the folder of a chain.

    A later stage's teacher is the encoder of the stage before: what its last block says, or its norm if the first
    teacher's was taken; a first teacher's depth and projection are its own. The seed is another one in each stage, and
    decides weights, order of the data, crops and masks. Weights to go on from (`init`) are those of the first stage.

    Raises:
        ValueError: if the method has no teacher, or one that follows its student has a second stage.
    """
    teacher = teacher_of(plan.run.method)
    if teacher is None:
        raise ValueError(
            f"Stages.run must be of a method with a teacher; got {plan.run.recipe}, a run of {plan.run.method.kind}, "
            f"which has none. Leave out --stages, or name dbot."
        )
    if number == 0:
        return plan.run
    if teacher.source == "ema":
        raise ValueError(
            f"Stages.stages must be 1 for a teacher that follows its student at every step, which hands nothing on; "
            f"got {plan.stages} with ema. Give --teacher ema without --stages, or another teacher."
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
    """Numbers in a feature of the first teacher, which is read for this; None: none is named yet.

    Raises:
        ValueError: if there is no such teacher, or it does not go with the student.
    """
    method: Any = plan.run.method
    teacher = teacher_of(method)
    if teacher is None or not teacher.source:
        return None
    if teacher.source in ("random", "ema"):
        return method.encoder.width
    with FakeTensorMode():
        student = method.encoder.build()  # whose sizes are asked for
    return teacher.build(student).width


def check_widths(plan: Stages, width: int | None) -> None:
    """AdamW's moments can go on only where what predicts keeps its size.

    Args:
        plan: Whose later stages predict vectors as wide as the student.
        width: Of the first teacher's, see `first_width`.

    Raises:
        ValueError: if they are to go on and cannot.
    """
    method: Any = plan.run.method
    if plan.reinit == "reference" and plan.stages > 1 and width not in (None, method.encoder.width):
        raise ValueError(
            f"Stages.reinit must be full or none where the first teacher is not as wide as the student, as the head of "
            f"the second stage has another size then and AdamW's moments do not fit; got reference, a teacher {width} "
            f"wide and a student {method.encoder.width} wide. Give --reinit full."
        )


def describe_stages(plan: Stages, out: Path) -> list[tuple[str, str]]:
    """Who teaches whom, stage by stage, how wide what is predicted is, and how each begins; for `pantomim explain`.

    Raises:
        ValueError: as `stage_run`, `first_width` and `check_widths`.
    """
    width = first_width(plan)
    check_widths(plan, width)
    student: Any = plan.run.method
    starts = {
        "full": "a new student and a new optimiser",
        "reference": "a new student that keeps the bias of its patch projection; AdamW's moments go on",
        "none": "the student keeps its weights; a new optimiser",
    }
    rows = []
    for number in range(plan.stages):
        run = stage_run(plan, number, out)
        teacher = teacher_of(run.method)
        assert teacher is not None, "stage_run refuses a run without one"
        begins = f"from {run.init}" if run.init else "a new student"
        rows.append(
            (
                f"stage {number}",
                f"teacher: {_name(teacher)}; {begins if number == 0 else starts[plan.reinit]}, seed "
                f"{run.runtime.seed}; {run.duration}, the rate from 0 again; "
                f"{_predicted(student.encoder.width if number else width)}",
            )
        )
    scored = f"k-NN and linear on {plan.evaluate} after each stage" if plan.evaluate else "not scored on the way"
    return [*rows, ("scores", scored), ("last encoder", f"{out / 'encoder.safetensors'}, that of the last stage")]


def _predicted(width: int | None) -> str:
    return "predicts what its teacher says" if width is None else f"predicts {width} numbers a patch"


def _name(teacher: TeacherConfig) -> str:
    """Which network, and what is taken of it."""
    blocks = {None: "", 0: ", no block: projected patches and positions"}.get(
        teacher.depth, f", {teacher.depth} blocks"
    )
    mean = f", mean of the last {teacher.blocks} blocks" if teacher.blocks > 1 else ""
    return f"{teacher.source}{blocks}{mean}, output {teacher.output}"

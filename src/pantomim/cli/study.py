import shlex
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from pantomim.cli.command_line import typed
from pantomim.cli.console import fail, progress, say, section, warn


@typed("Study", config=())
def study(
    plan: Positional[str | None] = None,
    data: str | None = None,
    input: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    scale: str | None = None,
    out: Path | None = None,
    without: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    index: int | None = None,
    minutes: float | None = None,
    jobs: int | None = None,
    job: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    list: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    table: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Compare runs over seeds: pantomim study PLAN --data SRC [--scale NAME] [--index I] [--table].

    Examples:
        pantomim study
        pantomim study masks --data my_photos/ --list
        pantomim study masks --data my_photos/ --jobs 8 --job gpus_per_node=1 --job slurm_partition=gpu

    Args:
        plan: A shipped plan's name, or your own FILE.yaml.
        data: What the runs are trained on, and what "{data}" in the plan stands for.
        input: NAME=SRC: what "{NAME}" in the plan stands for. May be repeated.
        scale: Which scale of the plan; the first one by default.
        out: Folder of the study; runs/study-PLAN-SCALE by default. An unfinished study in it is resumed.
        without: Leave out this evaluation. May be repeated.
        index: Carry out this cell only (for job arrays; see --list).
        minutes: Start no further cell after so many minutes.
        jobs: Queue so many jobs on Slurm, which share the cells, and end (needs the extra submitit).
        job: NAME=VALUE: an option of these jobs, such as timeout_min=600. May be repeated.
        list: Show the cells, and carry out none.
        table: Make the tables from what is there, and carry out none.
    """
    from pantomim.study.cells import expand
    from pantomim.study.page import write_tables
    from pantomim.study.placeholders import read_inputs
    from pantomim.study.plan import load_plan, shipped_plans
    from pantomim.study.queue import queue_jobs
    from pantomim.study.run import check_study, open_study, run_study, state

    if plan is None:
        section("Plans", [(each.name, " ".join(each.summary.split())) for each in shipped_plans().values()])
        say("\npantomim study PLAN --data SRC carries one out; FILE.yaml is a plan of your own.")
        return
    inputs = read_inputs(data, input)
    planned = expand(load_plan(plan), inputs, source=plan, scale=scale, without=without, out=out)
    out = out or Path("runs", "-".join(filter(None, ["study", planned.plan.name, planned.scale])))
    cells = planned.cells
    for warning in planned.warnings:
        warn(warning)
    if list:
        check_study(planned, out)
        section(f"{len(cells)} cells, --index 0 to {len(cells) - 1}", [(cell.name, state(cell, out)) for cell in cells])
        return
    if jobs is not None:
        open_study(planned, out)
        command = [*shlex.split(planned.command(out)), *([] if minutes is None else ["--minutes", f"{minutes}"])]
        cluster, numbers = queue_jobs(command, jobs, out / "jobs", job)
        say(f"Queued on {cluster}, logs in {out / 'jobs'}: {', '.join(numbers)}. Each makes the tables at its end.")
        return
    failed = []
    if table:
        open_study(planned, out)
    else:
        progress(f"{len(cells)} cells in {out}" + (f", scale {planned.scale}." if planned.scale else "."))
        failed = run_study(planned, out, index=index, minutes=minutes, say=progress)
    for path in write_tables(planned, out):
        say(f"Written: {path}")
    if left := sum(state(cell, out) != "finished" for cell in cells):
        say(f"{left} of {len(cells)} cells are not finished.")
    broken = [cell.name for cell in failed if state(cell, out) == "failed"]
    waiting = [cell.name for cell in failed if cell.name not in broken]
    if failed:
        problems = ((broken, "failed"), (waiting, "could not start"))
        fail(" ".join(f"{len(names)} cells {what}: {', '.join(names)}." for names, what in problems if names), 1)

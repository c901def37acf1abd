"""Kill commands at random moments, run the same command again until it is done, and compare with an undisturbed run.

    python tests/stress/kill_resume.py                      # 60 kills over all commands
    python tests/stress/kill_resume.py 200 mae finetune     # of these only; --list names them

A chain is one command, stopped some times, then left alone until its end. Each stop is one of
    cold     the real command, stopped at a random time of its whole life, imports included
    warm     the same in a child of a process that has the imports already
    point    at a random one of its operations on files: open, write, rename, fsync, mkdir (needs a C compiler)
    tmp      up to 5 ms after a temporary file appears: in the middle of writing it
by SIGKILL (8 of 10), SIGTERM or SIGINT. Every file that a run leaves must equal, bit for bit but for measured times,
that of the undisturbed run; no logged step may be there twice; whenever a process dies, files under their final names
are whole. First a run that loses the optimiser's moments when it is resumed must be found wrong. Exit status 1 on
anything wrong.
"""

import contextlib
import os
import random
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from harness import COMMANDS, Bench, Process, Reference, Trial, Trials, arm, begin, can, litter, parser, torn, warm_up

STOPPED = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 130)


class Chains:
    """Chains of stops and starts on a bench."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench, self.rng = bench, random.Random(seed)
        self.cold_s = self._import_time()

    def _import_time(self) -> float:
        """How long a cold command takes before it does anything."""
        began = time.monotonic()
        process = Process(["report", "nowhere"], self.bench.work / "cold.log", cold=True)
        process.finish(self.bench.patience)
        return time.monotonic() - began

    def stop_once(self, case: str, out: Path, reference: Reference) -> tuple[str, int | None, Process]:
        """Start the command and stop it; gives how, its status and the process."""
        kinds = {"cold": 12, "warm": 33, "tmp": 15} | ({"point": 40} if can("STRESS_LIBRARY") else {})
        (kind,) = self.rng.choices(list(kinds), list(kinds.values()))
        (number,) = self.rng.choices((signal.SIGKILL, signal.SIGTERM, signal.SIGINT), (8, 1, 1))
        number = signal.SIGKILL if kind == "tmp" else number
        left = 1 - 0.9 * min(1, _saved(out) / max(1, _saved(reference.out)))
        limit = 1.1 * reference.seconds * left
        before = None
        if kind == "point":
            call = self.rng.randint(1, max(20, round(reference.operations["any"] * left)))
            before = lambda: arm(out, "any", call, -number)  # noqa: E731
        process = self.bench.start(case, out, cold=kind == "cold", before=before)
        if kind == "tmp":
            _await_temporary(process, out, self.rng.randint(1, 8), limit)
            time.sleep(self.rng.uniform(0, 0.005))
        elif kind != "point":
            process.wait(self.rng.uniform(0, limit + self.cold_s * (kind == "cold")))
        if kind != "point":
            process.send(number)
        return f"{kind}-{number.name}", process.finish(self.bench.patience), process

    def chain(self, case: str, stops: int, resumed: Callable[[], None] | None = None) -> Trial:
        """So many stops, then to the end; `resumed` is called in the last start only."""
        reference, why, how, killed = self.bench.reference(case), [], [], 0
        out = self.bench.fresh(case, self.bench.work / "chain")
        status: int | None = None
        for _ in range(stops + 6):
            if killed == stops or why:
                break
            kind, status, process = self.stop_once(case, out, reference)
            process.wait(0)
            if status in STOPPED:
                killed += 1
                how.append(kind)
            elif status != 0:
                why.append(f"after {how[-1:]}, {kind}: status {status}: {process.last_words}")
                process.end()
            elif _saved(out) == _saved(reference.out):
                break  # done before the stop came
            why += [f"after {kind}: {text}" for text in torn(out)]
        if not why:
            process = self.bench.start(case, out, before=resumed)
            status = process.finish(self.bench.patience)
            why += self.bench.unequal(case, out) if status == 0 else [f"status {status}: {process.last_words}"]
            process.end()
        left, outcome = len(litter(out)), "wrong" if why else "same"
        if why:
            self.bench.keep(out)
        command = shlex.join(self.bench.words(case, Path("OUT")))
        group = f"kills of `{COMMANDS[case].split()[0]}`"
        stopped = f"{killed} stops: {' '.join(how)}"
        return Trial(group, case, stopped, outcome, "; ".join(why), command, killed, left)

    def check_resume(self) -> None:
        """A run that forgets the optimiser's moments when it is resumed must be found wrong; else end the script."""
        reference = self.bench.reference("mae")
        out = self.bench.fresh("mae", self.bench.work / "chain")
        process = self.bench.start("mae", out)
        while _saved(out) < 4 and process.wait(0.005) is None:
            pass
        process.end()
        process = self.bench.start("mae", out, before=_forget_moments)
        status = process.finish(self.bench.patience)
        found = self.bench.unequal("mae", out)
        if status != 0 or "encoder.safetensors differs" not in found or not _saved(reference.out):
            sys.exit(f"A run resumed without its moments must end, with other weights; got status {status}, {found}.")
        print(f"A run that is resumed without the optimiser's moments is noticed: {', '.join(found)}.", flush=True)


def _forget_moments() -> None:
    import torch

    torch.optim.Optimizer.load_state_dict = lambda self, state: None  # type: ignore[method-assign]


def _saved(out: Path) -> int:
    """Steps in the newest checkpoint of each run below a folder, summed."""
    newest: dict[Path, int] = {}
    for folder in out.rglob("step-*"):
        if re.fullmatch(r"step-\d+", folder.name):
            newest[folder.parent] = max(newest.get(folder.parent, 0), int(folder.name[5:]))
    return sum(newest.values())


def _await_temporary(process: Process, out: Path, count: int, seconds: float) -> None:
    """Until so many temporary files have been seen."""
    seen: set[str] = set()
    until = time.monotonic() + seconds
    while len(seen) < count and time.monotonic() < until and process.wait(0) is None:
        with contextlib.suppress(OSError):
            for folder, folders, files in os.walk(out):
                seen |= {os.path.join(folder, name) for name in (*folders, *files) if name.endswith(".tmp")}
        time.sleep(0.0005)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("kills", type=int, nargs="?", default=60)
    options.add_argument("commands", nargs="*", help="which ones; all by default")
    chosen = options.parse_args()
    if chosen.list:
        print("\n".join(f"{name:16s} {words}" for name, words in COMMANDS.items()))
        return
    cases = chosen.commands or list(COMMANDS)
    if unknown := set(cases) - COMMANDS.keys():
        options.error(f"no {', '.join(sorted(unknown))}; there are {', '.join(COMMANDS)}")
    work, began = begin(chosen.work), time.monotonic()
    if not can("STRESS_LIBRARY"):
        print("No C compiler: nothing is killed at a chosen file operation.", flush=True)
    warm_up()
    bench, trials = Bench(work, chosen.patience), Trials()
    bench.check_comparison()
    chains = Chains(bench, chosen.seed)
    chains.check_resume()
    most = max(1, round(2 * chosen.kills / len(cases)) - 1)
    killed = number = 0
    while killed < chosen.kills and time.monotonic() - began < 60 * chosen.minutes:
        stops = min(chains.rng.randint(1, min(8, most)), chosen.kills - killed)
        trials.add(chains.chain(cases[number % len(cases)], stops))
        killed += trials.all[-1].count
        number += 1
    trials.end(chosen, began, work)


if __name__ == "__main__":
    main()

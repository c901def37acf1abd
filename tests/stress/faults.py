"""Put faults into commands, run them again, and see that they end bit-equal or are refused with a useful message.

    python tests/stress/faults.py                       # all groups; --list names them
    python tests/stress/faults.py disk data --tries 10  # some groups, at most so many trials each

Each trial ends as one of
    same     what is left equals, bit for bit, what the undisturbed run left; on the way the command may have ended
             in a message that names file and remedy, or been interrupted, and the same command has then resumed it
    refused  the command stops: exit status 2, and a message that names what is at fault and what to do
    wrong    anything else: a traceback, a hang, other weights, success with something missing
    skipped  what the machine does not allow, such as mounting a small disk
Exit status 1 on anything wrong.
"""

import errno
import os
import random
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from harness import FEW, TUNE, Bench, Process, Trial, Trials, arm, begin, can, improper, litter, parser, warm_up
from image_files import png
from PIL import Image

GROUPS = {
    "operations": "a file operation that fails once",
    "disk": "a full disk, then room",
    "memory": "too little shared memory, then enough",
    "signals": "one signal, or two 10 to 50 ms apart",
    "group": "a signal to the whole process group",
    "workers": "a killed loader worker",
    "data": "images changed between stop and resume",
    "unfinished": "a damaged file of a stopped run",
    "finished": "a damaged file of a finished run",
}
MORE = {
    "wide": "pretrain mae --data {wide} --out {out} --size micro --steps 8 --batch_size 64 --data.workers 12 "
    "--runtime.device cpu --runtime.threads 1",
    "bare": f"pretrain mae --data {{own}}/var --out {{out}} {FEW}",
    "config": "pretrain --config {config} --out {out}",
    "arrays": f"pretrain mae --data {{own}}/small.npz --out {{out}} {FEW}",
    "classes": f"finetune {{own}}/var --encoder {{run}} --out {{out}} {TUNE}",
    "masks": f"segment {{own}}/masked --encoder {{run}} --out {{out}} --head linear {TUNE}",
    "seed": f"pretrain mae --data {{small}} --out {{out}} {FEW} --runtime.seed 5",
}
TRAINING = ("mae", "mae-workers", "finetune", "segment", "linear_mae", "dvae")
WRITING = ("features", "encode", "predict", "predict-masks", "report")
Change = Callable[[Path], object]
Task = Callable[[], Trial]


class Faults:
    """Trials by group; each is made when it is asked for."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench, self.rng = bench, random.Random(seed)
        self.own = bench.work / "own"  # images that change
        self.disk = bench.work / "disk"
        bench.commands |= MORE
        bench.places |= {"own": self.own, "wide": bench.work / "wide", "config": bench.work / "data/config.yaml"}
        self.restore()

    def restore(self) -> None:
        """The images as they were before any change."""
        shutil.rmtree(self.own, ignore_errors=True)
        self.own.mkdir()
        for name in ("var", "masked"):
            shutil.copytree(self.bench.work / "data" / name, self.own / name)
        shutil.copy2(self.bench.work / "data/small.npz", self.own)

    # ------------------------------------------------------------------------------------------------- How trials end
    def trial(self, group: str, case: str, fault: str, out: Path, outcome: str, why: str = "") -> Trial:
        words = shlex.join(self.bench.words(case, Path("OUT")))
        left = len(litter(out)) if out.exists() else 0
        if outcome == "wrong":
            self.bench.keep(out)
        return Trial(GROUPS[group], case, fault, outcome, why, words, litter=left)

    def skipped(self, group: str, case: str, fault: str, why: str) -> Trial:
        return self.trial(group, case, fault, Path("nowhere"), "skipped", why)

    def resumed(self, group: str, case: str, fault: str, out: Path, problem: str | None) -> Trial:
        """The fault is over: the same command must end bit-equal; `problem` is what was wrong while it lasted."""
        process = self.bench.start(case, out)
        status = process.finish(self.bench.patience)
        found = [problem] if problem else []
        found += self.bench.unequal(case, out) if status == 0 else [f"run again: {status}: {process.last_words}"]
        process.end()
        return self.trial(group, case, fault, out, "wrong" if found else "same", "; ".join(found))

    def settled(self, group: str, case: str, fault: str, out: Path, names: list[str]) -> Trial:
        """The fault stays: the command must end bit-equal, or be refused in a message with one of the names."""
        process = self.bench.start(case, out)
        status = process.finish(self.bench.patience)
        if status == 0:
            why = "; ".join(self.bench.unequal(case, out, finished=group == "finished"))
            outcome = "wrong" if why else "same"
        else:
            problem = improper(status, process.said, names)
            outcome, why = "wrong" if problem else "refused", f"{problem or ''}: {process.last_words}"
        process.end()
        return self.trial(group, case, fault, out, outcome, why)

    def met(self, process: Process, names: list[str]) -> str | None:
        """What was wrong with how a command ended that met a fault."""
        status = process.finish(self.bench.patience)
        problem = None if status == 0 else improper(status, process.said, names)
        words = f"{problem}: {process.last_words}" if problem else None
        process.end()
        return words

    # -------------------------------------------------------------------------------------------- The machine's faults
    def operations(self) -> Iterator[Task]:
        """The k-th open, write, rename, fsync or mkdir below the run folder fails."""
        while True:
            for case in (*TRAINING, *WRITING):
                kind = self.rng.choice(("open", "write", "rename", "fsync", "mkdir"))
                yield lambda case=case, kind=kind: self.failing_operation(case, kind)

    def failing_operation(self, case: str, kind: str) -> Trial:
        if not can("STRESS_LIBRARY"):
            return self.skipped("operations", case, kind, "there is no C compiler")
        counts = self.bench.reference(case).operations
        kind = kind if counts[kind] else "open"
        call, error = self.rng.randint(1, counts[kind]), self.rng.choice((errno.EIO, errno.EACCES))
        out = self.bench.fresh(case, self.bench.work / "trial")
        process = self.bench.start(case, out, before=lambda: arm(out, kind, call, error))
        fault = f"{kind} {call} of {counts[kind]} gives {errno.errorcode[error]}"
        return self.resumed("operations", case, fault, out, self.met(process, [str(out)]))

    def full_disk(self) -> Iterator[Task]:
        """A disk with room for a part of what the command writes."""
        while True:
            for case in (*TRAINING, *WRITING):
                yield lambda case=case: self.small_disk(case, self.rng.uniform(0.02, 0.9))

    def small_disk(self, case: str, share: float) -> Trial:
        if not can("STRESS_MOUNTS") and not can("STRESS_LIBRARY"):
            return self.skipped(
                "disk", case, f"{share:.0%}", "it is not permitted to mount, and there is no C compiler"
            )
        reference = self.bench.reference(case)
        if can("STRESS_MOUNTS"):
            mount(self.disk, "64m")
        out = self.bench.fresh(case, (self.disk if can("STRESS_MOUNTS") else self.bench.work) / "trial")
        before = size(out)
        room = int(share * (size(reference.out) - before)) // 4096 * 4096
        if can("STRESS_MOUNTS"):
            used = os.statvfs(self.disk)
            mount(self.disk, f"{(used.f_blocks - used.f_bfree) * used.f_frsize + max(4096, room)}", "remount,")
            process = self.bench.start(case, out)
        else:
            process = self.bench.start(case, out, before=lambda: arm(out, "any", -1, 0, room))
        problem = self.met(process, [str(out)])
        if can("STRESS_MOUNTS"):
            mount(self.disk, "64m", "remount,")
        trial = self.resumed("disk", case, f"room for {room} bytes, {share:.0%}", out, problem)
        if can("STRESS_MOUNTS"):
            subprocess.run(["umount", self.disk], check=True)
        return trial

    def memory(self) -> Iterator[Task]:
        """A /dev/shm of Docker's size with twelve workers and large images, and a tiny one."""
        for case, room in (("wide", "64m"), ("mae-workers", "16k")):
            yield lambda case=case, room=room: self.small_memory(case, room)

    def small_memory(self, case: str, room: str) -> Trial:
        fault = f"/dev/shm of {room}"
        if not can("STRESS_MOUNTS"):
            return self.skipped("memory", case, fault, "it is not permitted to mount")
        if case == "wide" and not self.bench.places["wide"].exists():
            self.bench.places["wide"].mkdir()
            for k in range(80):
                Image.effect_noise((300 + k % 7, 300), 60).convert("RGB").save(
                    self.bench.places["wide"] / f"{k:02}.jpg"
                )
        self.bench.reference(case)
        mount(Path("/dev/shm"), room)
        out = self.bench.fresh(case, self.bench.work / "trial")
        problem = self.met(self.bench.start(case, out), ["/dev/shm"])
        subprocess.run(["umount", "--lazy", "/dev/shm"], check=True)
        return self.resumed("memory", case, fault, out, problem)

    # ---------------------------------------------------------------------------------------------------------- Signals
    def signals(self) -> Iterator[Task]:
        while True:
            for case in (*TRAINING, "study", "features"):
                yield lambda case=case: self.signal_once(case, None)
                yield lambda case=case: self.signal_once(case, self.rng.uniform(0.01, 0.05))

    def signal_once(self, case: str, again: float | None) -> Trial:
        number = self.rng.choice((signal.SIGTERM, signal.SIGINT))
        after = self.rng.uniform(0, self.bench.reference(case).seconds)
        out = self.bench.fresh(case, self.bench.work / "trial")
        process = self.bench.start(case, out)
        process.wait(after)
        process.send(number)
        fault = f"{number.name} after {after:.2f} s"
        if again is not None:
            process.wait(again)
            process.send(number)
            fault += f" and {1000 * again:.0f} ms later"
        return self.resumed("signals", case, fault, out, self.interrupted(process))

    def interrupted(self, process: Process, words: str = "") -> str | None:
        """What was wrong with how a command ended that was signalled, and has to say those words."""
        status, said = process.finish(self.bench.patience), process.said
        process.end()
        if status is None:
            return "it hangs"
        if "Traceback (most recent call last)" in said:
            return f"exit {status} with a {process.last_words}"
        if status not in (0, 130, -signal.SIGTERM, -signal.SIGINT):
            return f"exit {status}: {process.last_words}"
        return None if status == 0 or words in said else f"it did not say that anything {words}: {process.last_words}"

    def group(self) -> Iterator[Task]:
        while True:
            for case in ("mae-workers", "beit"):
                yield lambda case=case: self.signal_group(case)

    def signal_group(self, case: str) -> Trial:
        number = self.rng.choice((signal.SIGTERM, signal.SIGINT))
        out, process, workers = self.with_workers(case)
        process.send(number, group=True)
        fault = f"{number.name} to it and {len(workers)} workers"
        return self.resumed("group", case, fault, out, self.interrupted(process, "is saved in"))

    def workers(self) -> Iterator[Task]:
        while True:
            for case in ("mae-workers", "mae-zip"):
                yield lambda case=case: self.kill_worker(case)

    def kill_worker(self, case: str) -> Trial:
        out, process, workers = self.with_workers(case)
        os.kill(self.rng.choice(workers), signal.SIGKILL)
        return self.resumed("workers", case, f"one of {len(workers)}", out, self.met(process, ["worker"]))

    def with_workers(self, case: str) -> tuple[Path, Process, list[int]]:
        """A run that has logged some steps and whose workers live."""
        self.bench.reference(case)
        for _ in range(20):
            out = self.bench.fresh(case, self.bench.work / "trial")
            process, log, wanted = self.bench.start(case, out), out / "metrics.jsonl", self.rng.randint(1, 5)
            while process.wait(0.002) is None and (not log.exists() or log.read_bytes().count(b"\n") < wanted):
                pass
            if process.status is None and (workers := process.children()):
                return out, process, workers
            process.end()
        raise RuntimeError(f"{case} has no workers to be seen")

    # ------------------------------------------------------------------------------------------------ Images and files
    def stopped(self, case: str) -> Path:
        """A run that was killed after its second checkpoint; the caller copies it."""
        self.bench.reference(case)
        folder = self.bench.work / "stopped" / case
        while not (folder / "run").exists():
            out = self.bench.fresh(case, folder)
            process = self.bench.start(case, out)
            while process.wait(0.001) is None and not (out / "checkpoints/step-00000004").exists():
                pass
            process.end()
            if (out / "finished.json").exists():
                shutil.rmtree(folder)
        return folder / "run"

    def data(self) -> Iterator[Task]:
        files: dict[str, Change] = {
            "every second image deleted": lambda own: [path.unlink() for path in images(own)[::2]],
            "a class renamed": lambda own: (own / "var/train/a").rename(own / "var/train/z"),
            "30 images overwritten in another size": lambda own: overwrite(images(own)[:30]),
            "two classes exchanged": lambda own: exchange(own / "var/train/a", own / "var/train/b"),
        }
        arrays: dict[str, Change] = {
            "every second image deleted": lambda own: rewrite(own, lambda values: values[::2]),
            "labels moved on": lambda own: rewrite(own, labels=lambda values: np.roll(values, 1)),
            "images overwritten": lambda own: rewrite(own, images=lambda values: values[:, ::-1]),
        }
        masks: dict[str, Change] = {
            "every second image deleted": lambda own: [
                path.unlink() for kind in ("images", "masks") for path in images(own, f"masked/{kind}")[::2]
            ],
            "other classes in the masks": lambda own: [
                Image.fromarray((np.array(Image.open(path)) + 1) % 3).save(path) for path in images(own, "masked/masks")
            ],
        }
        shutil.copy(self.bench.reference("bare").out / "config.yaml", self.bench.places["config"])
        of = {"bare": files, "config": files, "classes": files, "arrays": arrays, "masks": masks}
        for case, changes in of.items():
            for name, change in changes.items():
                yield lambda case=case, name=name, change=change: self.changed_images(case, name, change)

    def changed_images(self, case: str, fault: str, change: Change) -> Trial:
        out = self.bench.fresh(case, self.bench.work / "trial", of=self.stopped(case))
        change(self.own)
        trial = self.settled("data", case, fault, out, ["images", "masks", str(self.own)])
        self.restore()
        return trial

    def unfinished(self) -> Iterator[Task]:
        for case in self.shuffled(("mae", "finetune")):
            yield from self.damages("unfinished", case, self.stopped(case))
        yield lambda: self.foreign_checkpoints("unfinished", self.stopped("mae"))

    def finished(self) -> Iterator[Task]:
        for case in self.shuffled(("mae", "finetune", "segment", "dvae")):
            yield from self.damages("finished", case, self.bench.reference(case).out)

    def shuffled(self, cases: tuple[str, ...]) -> list[str]:
        return self.rng.sample(cases, len(cases))

    def damages(self, group: str, case: str, folder: Path) -> Iterator[Task]:
        """Each file of the folder cut, emptied, with a bit turned, removed."""
        files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        for file in files:
            for name, change in DAMAGES.items():
                if (file.name, name) == ("metrics.jsonl", "gone"):
                    continue  # its steps cannot be written again
                if group == "finished" and file.name in LISTS:
                    continue  # which say what was used, and are not read any more
                if (folder / file).stat().st_size > 1 or name == "gone":
                    yield lambda file=file, name=name, change=change: self.damaged(
                        group, case, folder, file, name, change
                    )

    def damaged(self, group: str, case: str, folder: Path, file: Path, name: str, change: Change) -> Trial:
        out = self.bench.fresh(case, self.bench.work / "trial", of=folder)
        change(out / file)
        return self.settled(group, case, f"{file} {name}", out, [file.name])

    def foreign_checkpoints(self, group: str, folder: Path) -> Trial:
        out = self.bench.fresh("mae", self.bench.work / "trial", of=folder)
        shutil.rmtree(out / "checkpoints")
        shutil.copytree(self.stopped("seed") / "checkpoints", out / "checkpoints")
        return self.settled(group, "mae", "checkpoints of a run with another seed", out, ["checkpoint"])


# -------------------------------------------------------------------------------------------------------------- Changes
def turn_bit(path: Path) -> None:
    """The highest bit in the middle: no text with it is what it was."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x80
    path.write_bytes(data)


LISTS = ("images.json.gz", "training_images.txt", "held_out_images.txt")
DAMAGES: dict[str, Change] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "with a bit turned": turn_bit,
    "gone": lambda path: path.unlink(),
}


def images(own: Path, folder: str = "var") -> list[Path]:
    return sorted((own / folder / "train").rglob("*.png"))


def overwrite(paths: list[Path]) -> None:
    for number, path in enumerate(paths):
        path.write_bytes(png(1000 + number, (30, 31)))


def exchange(one: Path, other: Path) -> None:
    aside = one.rename(one.with_name("aside"))
    other.rename(one)
    aside.rename(other)


def rewrite(own: Path, each: Callable | None = None, **named: Callable) -> None:
    """Change every array of the images, or those named."""
    with np.load(own / "small.npz") as file:
        arrays = {name: (each or named.get(name, lambda values: values))(file[name]) for name in file}
    np.savez(own / "small.npz", **arrays)


def mount(folder: Path, room: str, how: str = "") -> None:
    """A file system in memory, in the mounts of this script alone."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{how}size={room}", "tmpfs", folder], check=True)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    options = parser(__doc__)
    options.add_argument("groups", nargs="*", help="which ones; all by default")
    options.add_argument("--tries", type=int, default=30, help="trials in a group, at most")
    chosen = options.parse_args()
    if chosen.list:
        print("\n".join(f"{name:12s} {words}" for name, words in GROUPS.items()))
        return
    if unknown := set(chosen.groups) - GROUPS.keys():
        options.error(f"no {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    work, began = begin(chosen.work, mounts=True), time.monotonic()
    warm_up()
    bench, trials = Bench(work, chosen.patience), Trials()
    bench.check_comparison()
    faults = Faults(bench, chosen.seed)
    endless = {"operations", "disk", "signals", "group", "workers"}
    for group in chosen.groups or GROUPS:
        made = getattr(faults, "full_disk" if group == "disk" else group)()
        tasks = [next(made) for _ in range(chosen.tries)] if group in endless else list(made)
        if len(tasks) > chosen.tries:  # in their order, which keeps what one case needs together
            tasks = [tasks[i] for i in sorted(faults.rng.sample(range(len(tasks)), chosen.tries))]
        for task in tasks:
            if time.monotonic() - began < 60 * chosen.minutes:
                trials.add(task())
    trials.end(chosen, began, work)


if __name__ == "__main__":
    main()

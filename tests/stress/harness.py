"""What the stress scripts share: tiny images, the commands, processes that start at once, comparing, and the table."""

import argparse
import atexit
import contextlib
import ctypes
import faulthandler
import hashlib
import importlib
import json
import os
import pkgutil
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # tests/tiny.py and tests/masked_images.py

# ---------------------------------------------------------------------------------------------------------------- Cases
HOST = "--runtime.device cpu --runtime.threads 1 --runtime.save_every 2 --batch_size 8"
FEW = f"--size micro --steps 12 {HOST}"
STAGES = f"--size micro --steps 6 {HOST}"
TUNE = f"--steps 12 {HOST}"
QUICK = "--epochs 6 --warmup-epochs 1 --contenders trained pixels"

# Commands by name; {out} is where each writes, and holds a finished run before where the command works on one.
COMMANDS = {
    "mae": f"pretrain mae --data {{small}} --out {{out}} {FEW}",
    "mae-workers": f"pretrain mae --data {{var}} --out {{out}} {FEW} --data.workers 2",
    "mae-zip": f"pretrain mae --data {{zip}} --out {{out}} {FEW} --data.workers 1 --runtime.accumulation 2",
    "init": f"pretrain mae --data {{small}} --out {{out}} --init {{run}} {FEW}",
    "features-target": f"pretrain mae --data {{small}} --out {{out}} --target features --teacher {{run}} {FEW}",
    "finetune": f"finetune {{small}} --encoder {{run}} --out {{out}} {TUNE} --compare",
    "segment": f"segment {{masked}} --encoder {{run}} --out {{out}} --head linear {TUNE}",
    "linear_mae": f"evaluate linear_mae --encoder {{out}} --data {{small}} {QUICK}",
    "attentive": f"evaluate attentive --encoder {{out}} --data {{small}} {QUICK}",
    "upernet": f"segment {{large}} --encoder {{run}} --out {{out}} --head upernet --steps 4 {HOST}",
    "colormae": f"pretrain colormae --data {{small}} --out {{out}} {FEW}",
    "cae": f"pretrain cae --data {{small}} --out {{out}} --tokenizer random-projection {FEW}",
    "beit": f"pretrain beit --data {{var}} --out {{out}} --tokenizer random-projection {FEW} --data.workers 1",
    "dbot": f"pretrain dbot --data {{small}} --out {{out}} --stages 2 --evaluate {{small}} {STAGES}",
    "dbot-reference": f"pretrain dbot --data {{small}} --out {{out}} --stages 3 --reinit reference {STAGES}",
    "cmt_mae": f"pretrain cmt_mae --data {{small}} --out {{out}} --teacher {{run}} {FEW}",
    "milan": f"pretrain milan --data {{small}} --out {{out}} --teacher {{run}} {FEW}",
    "maskfeat": f"pretrain maskfeat --data {{small}} --out {{out}} {FEW}",
    "simmim": f"pretrain simmim --data {{small}} --out {{out}} {FEW}",
    "data2vec": f"pretrain data2vec --data {{small}} --out {{out}} {FEW}",
    "ijepa": f"pretrain ijepa --data {{small}} --out {{out}} {FEW}",
    "mocov3": f"pretrain mocov3 --data {{small}} --out {{out}} {FEW}",
    "supervised": f"pretrain supervised --data {{small}} --out {{out}} {FEW}",
    "dvae": f"tokenizer train dvae --data {{small}} --out {{out}} {FEW}",
    "vqkd": f"tokenizer train vqkd --teacher {{run}} --data {{small}} --out {{out}} {FEW}",
    "study": "study {plan} --data {small} --out {out}",
    "linear": "evaluate linear --encoder {out} --data {small} --epochs 2",
    "features": "features --encoder {run} --data {small} --out {out}/features.npz",
    "encode": "tokenizer encode --tokenizer random-projection --patch-size 4 --data {small} --out {out}/ids.npz",
    "predict": "predict {classes} {var} --out {out}/predictions.csv --overwrite",
    "predict-masks": "predict {segments} {masked}/images --out {out}/predictions --overlays --overwrite",
    "report": "report {out}",
    "inspect": "inspect spectrum {out}",
}
WORKS_ON = {"linear_mae": "mae", "attentive": "mae", "linear": "mae", "inspect": "mae", "report": "finetune"}
PLACES = {"run": "mae", "classes": "finetune", "segments": "segment"}  # finished runs that others need
PLAN = """
name: tiny
summary: Does hiding more help?
base: mae
size: micro
seeds: [0, 1]
duration: {steps: 6}
overrides:
  batch_size: 8
  optim: {warmup: {steps: 1}}
  runtime: {tracker: none, device: cpu, threads: 1, save_every: 2}
arms: {half: {method: {masker: {ratio: 0.5}}}, most: null}
evaluations: {knn: {protocol: knn, data: "{data}", device: cpu}}
compare: {metrics: [knn.top1], reference: most}
"""


def make_images(folder: Path) -> None:
    """The images of all cases: arrays, files of many sizes in folders of classes, a zip of these, images with masks."""
    import numpy as np
    from image_files import fill, png
    from masked_images import masked_folder
    from tiny import tiny_images

    folder.mkdir(parents=True)
    tiny_images(folder / "small.npz")
    sizes = np.random.default_rng(0).integers(16, 28, (90, 2))
    files = {
        f"{'test' if k % 5 == 4 else 'train'}/{'abc'[k % 3]}/{k:03}.png": png(k, (int(high), int(wide)))
        for k, (high, wide) in enumerate(sizes)
    }
    fill(folder / "var", files)
    with zipfile.ZipFile(folder / "var.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    masked_folder(folder / "masked", {"train": 24, "val": 4, "test": 6}, size=(20, 18))
    masked_folder(folder / "large", {"train": 10, "val": 2, "test": 2}, size=(36, 34))
    (folder / "plan.yaml").write_text(PLAN)


# ------------------------------------------------------------------------------------------------------------ Processes
OPERATIONS = ("open", "write", "rename", "fsync", "mkdir", "any")  # as failing.c counts them


def begin(work: Path | None, *, mounts: bool = False) -> Path:  # noqa: RET503 - it ends in exec
    """Start this script anew, with the library that makes file operations fail and, as root, mounts of its own.

    Gives the folder to work in. What is not at hand, a compiler or the right to mount, is told by `can`.
    """
    if "STRESS_WORK" in os.environ:
        os.nice(max(0, 10 - os.nice(0)))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        return Path(os.environ["STRESS_WORK"])
    folder = (work or Path(tempfile.mkdtemp(prefix="stress-"))).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    more = {"STRESS_WORK": str(folder), "PANTOMIM_CACHE": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    more |= {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    library, command = folder / "failing.so", [sys.executable, *sys.argv]
    if compiler := shutil.which("cc") or shutil.which("gcc"):
        build = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(HERE / "failing.c"), "-ldl"]
        if subprocess.run(build, capture_output=True).returncode == 0:
            more["LD_PRELOAD"] = more["STRESS_LIBRARY"] = str(library)
    for flags in ("-m", "-Urm") if mounts and shutil.which("unshare") else ():
        trial = ["unshare", flags, "mount", "-t", "tmpfs", "tmpfs", folder]
        if subprocess.run(trial, capture_output=True).returncode == 0:
            command, more["STRESS_MOUNTS"] = ["unshare", flags, *command], "1"
            break
    os.execvpe(command[0], command, os.environ | more)


def can(what: str) -> bool:
    """Whether `STRESS_LIBRARY` (a C compiler) or `STRESS_MOUNTS` is at hand."""
    return what in os.environ


def warm_up() -> None:
    """Import all that a run imports, so that children need not; nothing is computed here."""
    import torch.utils.tensorboard  # noqa: F401

    import pantomim

    for module in pkgutil.walk_packages(pantomim.__path__, "pantomim."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)


def arm(folder: Path, kind: str, call: int, error: int, room: int = -1) -> None:
    """In a child: the `call`-th operation of that kind below the folder fails, or kills if `error` is below 0."""
    library = ctypes.CDLL(os.environ["STRESS_LIBRARY"])
    sizes = ctypes.c_long(call), error, ctypes.c_long(room)
    library.stress_arm(os.fsencode(folder), OPERATIONS.index(kind), *sizes)


def operations() -> dict[str, int]:
    """In an armed child: how many operations of each kind there were."""
    counts = (ctypes.c_long * len(OPERATIONS)).in_dll(ctypes.CDLL(os.environ["STRESS_LIBRARY"]), "stress_calls")
    return dict(zip(OPERATIONS, counts, strict=True))


RUNNING: "set[Process]" = set()


class Process:
    """One command, in a child that has the imports already, or, cold, as a user starts it; its session is its own."""

    def __init__(
        self,
        words: list[str],
        log: Path,
        *,
        cold: bool = False,
        before: Callable[[], None] | None = None,
        after: Callable[[], None] | None = None,
    ) -> None:
        self.log, self.status = log, None
        self._log_start = log.stat().st_size if log.exists() else 0
        if cold:
            with log.open("ab") as stream:
                command = [sys.executable, "-m", "pantomim", *words]
                how: dict[str, Any] = {"stdout": stream, "stderr": stream, "start_new_session": True}
                self.pid = subprocess.Popen(command, stdin=subprocess.DEVNULL, **how).pid
        else:
            sys.stdout.flush()
            self.pid = os.fork()
            if self.pid == 0:
                _child(words, log, before, after)
        RUNNING.add(self)

    def wait(self, seconds: float) -> int | None:
        """The exit status, below 0 of a signal; None if it has not ended within so many seconds."""
        until = time.monotonic() + seconds
        while self.status is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.status = os.waitstatus_to_exitcode(status)
                RUNNING.discard(self)
            elif time.monotonic() >= until:
                break
            else:
                time.sleep(0.002)
        return self.status

    def finish(self, seconds: float) -> int | None:
        """As `wait`; a command that hangs then tells in its log where its threads stand, and is over."""
        if (status := self.wait(seconds)) is None:
            self.send(signal.SIGABRT)
            self.wait(10)
        return status

    def send(self, number: int, *, group: bool = False) -> None:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def end(self) -> None:
        """Kill it, and whatever is left of its session."""
        self.send(signal.SIGKILL)
        self.wait(60)
        self.send(signal.SIGKILL, group=True)

    def children(self) -> list[int]:
        """Forked workers: children of the same command line."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.pid and (entry / "cmdline").read_bytes() == Path("/proc/self/cmdline").read_bytes():
                    found.append(int(entry.name))
        return found

    @property
    def said(self) -> str:
        """What it has printed."""
        with self.log.open("rb") as stream:
            stream.seek(self._log_start)
            return stream.read().decode(errors="replace")

    @property
    def last_words(self) -> str:
        """Its last error, or the last line of its traceback, in one line."""
        said = self.said
        if "Traceback (most recent call last)" in said:
            return "traceback: " + said.rstrip().rpartition("\n")[2]
        message = error_in(said) or "; ".join(said.split("\n")[-3:])
        return " | ".join(line.strip() for line in message.splitlines())[:800]


def error_in(said: str) -> str | None:
    """The last message of the command line."""
    messages = re.split(r"^error: ", said, flags=re.MULTILINE)
    return messages[-1].strip() if len(messages) > 1 else None


def _child(
    words: list[str], log: Path, before: Callable[[], None] | None, after: Callable[[], None] | None
) -> NoReturn:
    status = 1
    try:
        os.setsid()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        faulthandler.enable(2)
        sys.argv = ["pantomim", *words]
        if before is not None:
            before()
        from pantomim.cli import main

        main(words)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            if after is not None:
                after()
            atexit._run_exitfuncs()  # ends loader workers, as the interpreter would
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


# ------------------------------------------------------------------------------------------------------------ Comparing
MEASURED = re.compile(r"_s$|_per_s|^s_per_|^time|seconds|started|command|environment|memory|cost")


RUN_FOLDER = re.compile(re.escape(os.environb.get(b"STRESS_WORK", b"-")) + rb"/[\w/-]*/run\b")


def plain(value: Any) -> Any:
    """JSON values without what is measured anew in every run."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if not MEASURED.search(key)}
    return [plain(item) for item in value] if isinstance(value, list) else value


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def content(path: Path) -> Any:
    """What is compared of a file, as plain values; raises ValueError if it is torn."""
    data = RUN_FOLDER.sub(b"RUN", path.read_bytes())
    if path.suffix == ".jsonl":
        rows = [plain(json.loads(line)) for line in data.splitlines()]
        if (steps := [row["step"] for row in rows]) != sorted(set(steps)):
            raise ValueError(f"{path.name} does not hold each step once, in order: {steps}")
        return rows
    if path.suffix == ".json":
        return plain(json.loads(data))
    if path.suffix == ".yaml":  # lines break elsewhere if a path is longer
        return yaml.safe_load(data)
    if path.suffix in (".html", ".md"):  # pages tell times
        if path.suffix == ".html" and not data.rstrip().endswith(b"</html>"):
            raise ValueError(f"{path.name} is cut")
        return [sha(picture) for picture in re.findall(rb"data:image/png;base64,([A-Za-z0-9+/=]+)", data)]
    if path.suffix == ".npz":
        import numpy as np

        with np.load(path) as arrays:
            return {name: described(arrays[name]) for name in arrays}
    return sha(data)


def described(array: Any) -> Any:
    """An array by its hash; what is told beside arrays, as JSON, by its values."""
    if array.dtype.kind == "U" and array.shape == ():
        return plain(json.loads(RUN_FOLDER.sub(b"RUN", str(array).encode())))
    return [str(array.dtype), array.shape, sha(array.tobytes())]


def result(out: Path) -> dict[str, Any]:
    """What a command leaves, by name: every file but TensorBoard's logs; of checkpoints the tensors of the last."""
    found: dict[str, Any] = {}
    newest = {folder.parent: folder for folder in sorted(out.rglob("step-*")) if folder.is_dir()}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out)
        inside = {"tensorboard", "checkpoints"} & set(name.parts) or any(part.startswith(".") for part in name.parts)
        if path.is_file() and not inside and path.name != "environment.json":
            found[str(name)] = content(path)
    for folder in newest.values():
        for path in sorted(folder.glob("*.safetensors")):
            found[str(path.relative_to(out))] = sha(path.read_bytes())
    return json.loads(json.dumps(found))


def differences(expected: dict[str, Any], got: dict[str, Any]) -> list[str]:
    """What differs between two results; nothing if they are equal."""
    found = []
    for name in sorted(expected.keys() | got.keys()):
        if name not in got or name not in expected:
            found.append(f"{name} is {'missing' if name not in got else 'too much'}")
        elif expected[name] != got[name]:
            found.append(f"{name} differs")
    return found


def torn(out: Path) -> list[str]:
    """What must hold at any moment, whoever was killed, and does not: each file under its final name is whole."""
    found = []
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out)
        if not path.is_file() or "tensorboard" in name.parts or any(part.startswith(".") for part in name.parts):
            continue
        try:
            if path.name == "checkpoint.json":
                for file, stated in json.loads(path.read_text())["files"].items():
                    if sha((path.parent / file).read_bytes()) != stated["sha256"]:
                        found.append(f"{name.parent / file} is not what its description says")
            elif path.suffix == ".jsonl":  # its last line may be half
                for line in path.read_bytes().split(b"\n")[:-1]:
                    json.loads(line)
            else:
                content(path)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            found.append(f"{name} is not whole: {repr(error)[:300]}")
    return found


def litter(out: Path) -> list[str]:
    """Temporary files that were left."""
    return [str(path.relative_to(out)) for path in out.rglob("*") if path.name.endswith((".tmp", ".old"))]


REMEDIES = (
    "add cause check choose copy free get give install leave lower make mount pass put raise remove rename repair "
    "restore run save set sort start try turn use wait write"
)
REMEDY = re.compile(rf"(?m:^|[.:;] )({'|'.join(REMEDIES.title().split())})\b|, or ({'|'.join(REMEDIES.split())})\b")


def improper(status: int | None, said: str, names: Sequence[str]) -> str | None:
    """Why an end with that status is none with a message that names what is at fault and what to do; None if it is."""
    if status is None:
        return "it hangs"
    if "Traceback (most recent call last)" in said:
        return f"exit {status} with a traceback"
    if status != 2 or (message := error_in(said)) is None:
        return f"exit {status} without an error message"
    if not any(name in message for name in names):
        return f"the message does not name {' or '.join(names)}"
    return None if REMEDY.search(message) else "the message does not say what to do"


# ---------------------------------------------------------------------------------------------------------------- Bench
@dataclass(frozen=True)
class Reference:
    """An undisturbed run: what it left, where, how long it took, and its operations on files by kind."""

    out: Path
    values: dict[str, Any]
    seconds: float
    operations: dict[str, int]


class Bench:
    """The images, the undisturbed runs, and what starts commands on them."""

    def __init__(self, work: Path, patience: float) -> None:
        self.work, self.patience = work, patience
        self.places = {
            "small": work / "data/small.npz",
            "var": work / "data/var",
            "zip": work / "data/var.zip",
            "masked": work / "data/masked",
            "large": work / "data/large",
            "plan": work / "data/plan.yaml",
            **{name: work / f"references/{case}/run" for name, case in PLACES.items()},
        }
        self.commands, self._references = dict(COMMANDS), {}
        if not (work / "data/plan.yaml").exists():
            shutil.rmtree(work / "data", ignore_errors=True)
            make_images(work / "data")

    def words(self, case: str, out: Path) -> list[str]:
        return [word.format(out=out, **self.places) for word in shlex.split(self.commands[case])]

    def fresh(self, case: str, folder: Path, *, of: Path | None = None) -> Path:
        """An empty place to write to, or a copy of the run that the case works on, or of another folder."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        of = self.reference(WORKS_ON[case]).out if of is None and case in WORKS_ON else of
        if of is not None:
            shutil.copytree(of, folder / "run")
        return folder / "run"

    def start(self, case: str, out: Path, **how: Any) -> Process:
        return Process(self.words(case, out), self.work / f"{out.parent.name}.log", **how)

    def reference(self, case: str) -> Reference:
        """The undisturbed run of a case, carried out once; those that it needs come first."""
        for place, needed in PLACES.items():
            if f"{{{place}}}" in self.commands[case]:
                self.reference(needed)
        if case not in self._references:
            out = self.fresh(case, self.work / "references" / case)
            counted, began = out.parent / "operations.json", time.monotonic()
            before = after = None
            if can("STRESS_LIBRARY"):
                before, after = lambda: arm(out, "any", -1, 0), lambda: counted.write_text(json.dumps(operations()))
            process = self.start(case, out, before=before, after=after)
            if (status := process.finish(5 * self.patience)) != 0:
                process.end()
                sys.exit(f"{case}: the undisturbed run ended with {status}: {process.last_words}")
            counts = json.loads(counted.read_text()) if counted.exists() else {}
            self._references[case] = Reference(out, result(out), time.monotonic() - began, counts)
        return self._references[case]

    def keep(self, out: Path) -> None:
        """Put away what went wrong, with what was said."""
        folder = self.work / f"wrong-{len(list(self.work.glob('wrong-*'))):03}"
        shutil.move(out.parent, folder)
        shutil.copy(self.work / f"{out.parent.name}.log", folder)

    def unequal(self, case: str, out: Path, *, finished: bool = False) -> list[str]:
        """Why what a command left is not what the undisturbed run left; nothing if it is, bit for bit.

        Of a run that was `finished` before, what it hands back counts: nobody reads its checkpoints.
        """
        try:
            found = differences(self.reference(case).values, result(out))
            return [text for text in found if "checkpoints/" not in text] if finished else torn(out) + found
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            return [repr(error)[:300]]

    def check_comparison(self) -> None:
        """Damage copies of a finished run in all ways that must be noticed; ends the script if one is not."""
        source = self.reference("finetune").out

        def change(name: str, how: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
            return lambda out: (out / name).write_bytes(how((out / name).read_bytes()))

        log = (source / "metrics.jsonl").read_text().splitlines()
        loss = str(json.loads(log[5])["loss"])
        ways: dict[str, Callable[[Path], Any]] = {
            "one bit of the weights": change("classifier.safetensors", lambda d: d[:-1] + bytes([d[-1] ^ 1])),
            "weights cut": change("classifier.safetensors", lambda d: d[:-1]),
            "weights gone": lambda out: (out / "classifier.safetensors").unlink(),
            "last digit of a loss": change("metrics.jsonl", lambda d: d.replace(loss.encode(), loss[:-1].encode())),
            "a step less": change("metrics.jsonl", lambda d: d.partition(b"\n")[2]),
            "a step twice": change("metrics.jsonl", lambda d: d + d.splitlines()[-1] + b"\n"),
            "half a line": change("metrics.jsonl", lambda d: d[:-9]),
            "a score gone": lambda out: shutil.rmtree(out / "eval"),
            "not finished": lambda out: (out / "finished.json").unlink(),
            "the second run gone": lambda out: shutil.rmtree(out / "scratch"),
            "a bit of a checkpoint": change(
                "checkpoints/step-00000012/optimizer.safetensors", lambda d: d[:-1] + bytes([d[-1] ^ 1])
            ),
        }
        folder = self.work / "comparison"
        if self.unequal("finetune", self.fresh("finetune", folder, of=source)):
            sys.exit("A copy of a run must be equal to it, and is not.")
        for name, damage in ways.items():
            out = self.fresh("finetune", folder, of=source)
            damage(out)
            if not self.unequal("finetune", out):
                sys.exit(f"The comparison must notice {name}, and does not.")
        shutil.rmtree(folder)
        right, advice = "run/a.json must be whole; got ''.", "Remove it."
        for status, said, proper in (
            (2, f"error: {right} {advice}", True),
            (2, f"error: {right}\n{advice}", True),
            (1, f"error: {right} {advice}", False),
            (None, f"error: {right} {advice}", False),
            (2, f"error: {right}", False),
            (2, f"error: something must be whole. {advice}", False),
            (2, f"{right} {advice}", False),
            (2, f"Traceback (most recent call last):\nerror: {right} {advice}", False),
        ):
            if (improper(status, said, ["a.json"]) is None) != proper:
                sys.exit(f"Exit {status} with {said!r} must be {'proper' if proper else 'improper'}, and is not.")
        print(f"The comparison notices {len(ways)} of {len(ways)} damages: {', '.join(ways)}.", flush=True)


# ---------------------------------------------------------------------------------------------------------------- Table
@dataclass(frozen=True)
class Trial:
    """One attempt: `count` disturbances of a command, and how they ended: same, refused, wrong or skipped."""

    group: str
    case: str
    fault: str
    outcome: str
    why: str = ""
    command: str = ""
    count: int = 1
    litter: int = 0


class Trials:
    """Every trial so far: printed as it ends, and as tables."""

    COLUMNS = ("same", "refused", "wrong", "skipped")

    def __init__(self) -> None:
        self.all: list[Trial] = []

    def add(self, trial: Trial) -> None:
        self.all.append(trial)
        print(f"{len(self.all):4d} {trial.outcome:8s} {trial.group}: {trial.case}, {trial.fault}", flush=True)
        if trial.outcome in ("wrong", "skipped"):
            print(f"       {trial.why}\n       pantomim {trial.command}", flush=True)

    def counts(self) -> dict[str, dict[str, int]]:
        """Disturbances by group and outcome."""
        groups: dict[str, dict[str, int]] = {}
        for trial in self.all:
            row = groups.setdefault(trial.group, dict.fromkeys(("tried", *self.COLUMNS), 0))
            row[trial.outcome] += trial.count
            row["tried"] += trial.count * (trial.outcome != "skipped")
        return groups

    def end(self, options: argparse.Namespace, began: float, work: Path) -> NoReturn:
        """Print the table, write what was asked for, remove the folder if all is well; exit 1 on a wrong outcome."""
        print(f"\n{'':44s} {' '.join(f'{name:>8s}' for name in ('tried', *self.COLUMNS))}")
        for group, row in self.counts().items():
            print(f"{group:44s} {' '.join(f'{count:8d}' for count in row.values())}")
        wrong = [trial for trial in self.all if trial.outcome == "wrong"]
        left = sum(trial.litter for trial in self.all)
        print(f"{len(self.all)} trials, {len(wrong)} wrong, {left} temporary files left, seed {options.seed}, ", end="")
        print(f"{(time.monotonic() - began) / 60:.1f} minutes")
        if options.json:
            about = {"seed": options.seed, "counts": self.counts(), "trials": [asdict(trial) for trial in self.all]}
            options.json.write_text(json.dumps(about, indent=2) + "\n")
        if options.markdown:
            print("\n| tried | times | bit-equal in the end | refused with a message | wrong |\n|---|---|---|---|---|")
            for group, row in self.counts().items():
                skipped = f" ({row['skipped']} not possible on this machine)" if row["skipped"] else ""
                numbers = " | ".join(str(row[key]) for key in ("tried", "same", "refused", "wrong"))
                print(f"| {group}{skipped} | {numbers} |")
        for process in list(RUNNING):
            process.end()
        if options.work is None and not wrong:
            shutil.rmtree(work, ignore_errors=True)
        elif wrong:
            print(f"Logs: {work}")
        sys.exit(bool(wrong))


def parser(text: str | None) -> argparse.ArgumentParser:
    """The options of all scripts."""
    found = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--seed", type=int, default=0, help="of times, places and signals")
    found.add_argument("--work", type=Path, help="where runs and logs go; a temporary folder by default")
    found.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing more after so many")
    found.add_argument("--patience", type=float, default=180, help="seconds after which a command is called hanging")
    found.add_argument("--json", type=Path, help="write every trial to this file")
    found.add_argument("--markdown", action="store_true", help="print the table of docs/reliability.md, too")
    found.add_argument("--list", action="store_true", help="show what there is to choose from, and try nothing")
    return found

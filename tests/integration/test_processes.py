"""Several processes are one, to rounding: every method, stopped in two and resumed alone; some in several graphs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shared_out import BEGUN_ALONE, COMPILED, HALF, NAMES, STEPS, make_images, run, stopping

from pantomim.checkpoint import WEIGHTS, find_checkpoint
from pantomim.engine.pretrain import pretrain
from pantomim.engine.record import read_metrics

TESTS = Path(__file__).parents[1]
# No gradient reaches the keys' biases, nor what shifts all features alike before a batch norm, which then has another
# mean: AdamW makes steps of the rounding
NO_GRADIENT = ("qkv.bias", "kv.bias", "norm_k.bias", "encoder.norm.bias", "projector.norms.0.running_mean")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("processes"),
]  # one launch makes what all look at


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What two processes leave, and what they print."""
    folder = tmp_path_factory.mktemp("shared")
    make_images(folder)
    for name in BEGUN_ALONE:
        with stopping(HALF):
            pretrain(run(name, folder), folder / name)
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [*launcher, str(TESTS / "shared_out.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=800)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def same_to_rounding(one: Path, other: Path) -> None:
    ours, theirs = (read_metrics(out / "metrics.jsonl") for out in (one, other))
    assert [row["step"] for row in theirs] == [row["step"] for row in ours] == [*range(1, STEPS + 1)]
    for mine, found in zip(ours, theirs, strict=True):
        assert found["loss"] == pytest.approx(mine["loss"], rel=1e-4)
        assert found["grad_norm"] == pytest.approx(mine["grad_norm"], rel=1e-3)
    weights = [load_file(find_checkpoint(out / "checkpoints").path / WEIGHTS) for out in (one, other)]
    for name, value in weights[0].items():
        if not name.endswith(NO_GRADIENT):
            torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=5e-5, msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_two_processes_is_resumed_by_one_or_the_other_way_round(name: str, shared: tuple[Path, str]) -> None:
    folder, _ = shared
    last = read_metrics(folder / name / "metrics.jsonl")[-1]["step"]
    assert last == (STEPS if name in BEGUN_ALONE else HALF)
    pretrain(run(name, folder), folder / name)
    pretrain(run(name, folder), folder / f"{name}-alone")
    same_to_rounding(folder / f"{name}-alone", folder / name)


@pytest.mark.parametrize("name", COMPILED)
def test_two_compiled_processes_with_several_buckets_and_micro_batches_are_one(
    name: str, shared: tuple[Path, str]
) -> None:
    folder, printed = shared
    graphs = dict(line.split() for line in printed.splitlines() if line.startswith(COMPILED))
    assert int(graphs[name]) > 2, "cut at the borders of buckets"
    pretrain(run(name, folder), folder / f"{name}-alone")  # unless the test above did
    same_to_rounding(folder / f"{name}-alone", folder / f"{name}-compiled")

import importlib.util
import itertools
import resource
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from pantomim.config import RuntimeConfig
from pantomim.core.machine import keep_heap
from pantomim.engine.runtime import (
    Purpose,
    alike,
    clip_gradients,
    compiles,
    compute_dtype,
    generator,
    on_main,
    random_seed,
    start_accelerator,
)

CPU = torch.device("cpu")


def test_random_numbers_depend_on_seed_step_purpose_and_process() -> None:
    seeds = {
        random_seed(seed, step, purpose, rank)
        for seed, step, purpose, rank in itertools.product((0, 1), (0, 1), Purpose, (0, 1))
    }
    assert len(seeds) == 2 * 2 * len(Purpose) * 2
    assert random_seed(3, 4, Purpose.DRAW) == random_seed(3, 4, Purpose.DRAW)


def test_the_generator_of_a_step_can_be_made_again() -> None:
    first, again, next_step = (torch.rand(5, generator=generator(7, step, CPU)) for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, next_step)


@pytest.mark.parametrize(
    ("precision", "device", "dtype"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("float32", "cuda", torch.float32),
        ("bfloat16", "cpu", torch.bfloat16),
        ("float16", "cpu", torch.float16),
    ],
)
def test_precision_by_device_unless_asked_for(precision: str, device: str, dtype: torch.dtype) -> None:
    assert compute_dtype(RuntimeConfig(precision=precision), torch.device(device)) == dtype


def test_a_gpu_without_bfloat16_gets_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has_bfloat16, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_bfloat16: has)
        assert compute_dtype(RuntimeConfig(), torch.device("cuda")) == dtype


@pytest.mark.parametrize(
    ("compile", "device", "total", "tool", "gathers", "expected"),
    [
        ("auto", "cuda", 500, "gcc", False, True),
        ("auto", "cuda", 499, "gcc", False, False),
        ("auto", "cuda", 500, None, False, False),
        ("auto", "cuda", 500, "gcc", True, False),
        ("auto", "cpu", 500, "gcc", False, False),
        (True, "cpu", 1, None, True, True),
        (False, "cuda", 10**6, "gcc", False, False),
    ],
)
def test_long_runs_on_a_gpu_are_compiled(
    compile: Any, device: str, total: int, tool: str | None, gathers: bool, expected: bool, monkeypatch: Any
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(shutil, "which", lambda name: tool)
    assert compiles(RuntimeConfig(compile=compile), torch.device(device), total, gathers) == expected


@pytest.mark.skipif(not keep_heap(), reason="another C library than glibc")
def test_the_heap_is_kept() -> None:
    for _ in range(3):
        torch.ones(20 * 2**18)  # 20 MiB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(20 * 2**18)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 20 * 5120 / 4  # pages of 4 KiB


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"RuntimeConfig\.device .* got cuda"):
        start_accelerator(RuntimeConfig(device="cuda"), tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("trackio") is not None, reason="trackio is installed")
def test_a_tracker_that_is_not_installed_names_its_extra(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pip install 'pantomim\[trackio\]'"):
        start_accelerator(RuntimeConfig(tracker="trackio"), tmp_path)


def test_gradients_are_clipped_to_the_norm_or_only_measured() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    frozen = torch.nn.Parameter(torch.zeros(2), requires_grad=False)
    assert clip_gradients([weight, frozen], None).item() == pytest.approx(5.0)
    assert weight.grad.tolist() == [3.0, 4.0]
    assert clip_gradients([weight, frozen], 1.0).item() == pytest.approx(5.0)
    assert weight.grad.norm().item() == pytest.approx(1.0, rel=1e-5)


def test_the_main_process_acts_and_errors_pass() -> None:
    accelerator = Accelerator(cpu=True)
    assert on_main(accelerator, lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        on_main(accelerator, lambda: 1 // 0)


@pytest.mark.parametrize(("seen", "refused"), [([100, 100], False), ([100, 0], True)])
def test_processes_that_see_another_folder_are_refused(seen: list[int], refused: bool, monkeypatch) -> None:
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(accelerator, "gather", lambda here: torch.tensor(seen))
    with pytest.raises(ValueError, match=r"must be the same for all .*\[100, 0\]") if refused else nullcontext():
        alike(accelerator, "out", 100)

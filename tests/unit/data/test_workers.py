"""Workers on a machine that is too small for them, under signals and kills: the same comes out, and nothing waits."""

import contextlib
import errno
import os
import signal
import time
import warnings
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
import torch.utils.data

from pantomim.core import machine
from pantomim.data.workers import hand_over, read_ahead, take_over

Read = namedtuple("Read", ["images", "ids", "masks"])


def in_worker():
    return torch.utils.data.get_worker_info() is not None


class Source(torch.utils.data.Dataset):
    """Numbers; `happens` is called in workers, with each item."""

    def __init__(self, happens=lambda item: None):
        self.happens = happens

    def __getitem__(self, item):
        if in_worker():
            self.happens(item)
        return hand_over(Read(torch.full((3, 20, 20), item), torch.tensor([item]), None))


def numbers(happens=lambda item: None, workers=2, count=12, tell=warnings.warn):
    read = read_ahead(Source(happens), range(count), workers, pin=False, tell=tell)
    return [int(take_over(made).images.double().mean()) for made in read]


def refuse(*error):
    def raising(*_, **__):
        raise OSError(*error)

    return raising


def small(free):
    return lambda path: SimpleNamespace(f_bavail=free, f_frsize=1)


@pytest.mark.parametrize(
    ("owner", "name", "instead", "told"),
    [
        (os, "statvfs", small(3000), "goes through pipes"),
        (os, "statvfs", refuse(errno.EACCES, "Permission denied"), "goes through pipes"),
        (machine, "FEW_FILES", 2**40, "goes through pipes"),
        (torch.Tensor, "share_memory_", refuse(errno.ENOSPC, "No space left on device"), "goes through pipes"),
        (os, "fork", refuse(errno.EAGAIN, "Resource temporarily unavailable"), "No worker can be started"),
        (os, "pipe", refuse(errno.EMFILE, "Too many open files"), "No worker can be started"),
    ],
    ids=["little shared memory", "none", "few open files", "others are quicker", "few processes", "no open files"],
)
def test_a_machine_that_is_too_small_gives_the_same_and_says_so(monkeypatch, owner, name, instead, told):
    monkeypatch.setattr(owner, name, instead)
    with pytest.warns(UserWarning, match=rf"{told}.*slower.*data\.workers"):
        assert numbers() == list(range(12))


def test_where_there_is_room_batches_are_shared():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert numbers() == list(range(12))


def group_signal(item):
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)


def test_signals_to_the_whole_group_pass_workers_by():
    assert numbers(group_signal, tell=pytest.fail) == list(range(12))


@pytest.mark.parametrize(
    ("end", "how"),
    [(lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed (signal 9)"), (lambda: os._exit(3), "ended (3)")],
    ids=["killed", "exited"],
)
def test_the_rest_is_read_where_a_worker_dies(end, how):
    told = []
    before = signal.getsignal(signal.SIGCHLD)
    assert numbers(lambda item: end() if item == 5 else None, tell=told.append) == list(range(12))
    assert signal.getsignal(signal.SIGCHLD) is before
    (words,) = told
    assert "memory" in words
    assert "data.workers" in words
    assert how in words


def test_a_death_is_no_error_in_the_middle_of_a_step():
    told, found = [], []
    read = read_ahead(
        Source(lambda item: os.kill(os.getpid(), 9) if item == 6 else None), range(8), 1, pin=False, tell=told.append
    )
    for made in read:
        time.sleep(0.05)  # a step, in which the worker dies
        found.append(int(made.ids))
    assert found == list(range(8))
    assert len(told) == 1


def test_what_reading_raises_is_raised():
    def fail(item):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        numbers(fail)


def test_workers_end_with_who_reads(tmp_path):
    def note(item):
        (tmp_path / str(os.getpid())).touch()

    read = read_ahead(Source(note), range(100), 2, pin=False, tell=pytest.fail)
    next(read)
    read.close()
    for file in tmp_path.iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(file.name), 0)
            pytest.fail("a worker is left")

"""What this machine allows a process: memory, open files, shared memory; and which of several it is."""

import ctypes
import os
import sys
from pathlib import Path
from typing import Literal

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None  # type: ignore[assignment]

Device = Literal["auto", "cpu", "cuda", "mps"]
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MOST_MMAP_THRESHOLD = 32 * 2**20  # bytes that glibc takes; larger tensors come from the kernel one by one
SHARED = Path("/dev/shm")
FEW_FILES = 512  # open files: every batch in shared memory is one, and every worker has six


def is_main_process() -> bool:
    """Whether this one of several processes is the one that prints results."""
    return int(os.environ.get("RANK", "0")) == 0


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_gib() -> float | None:
    """The most resident memory so far; None where the system does not tell (Windows)."""
    if resource is None:
        return None
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / (2**30 if sys.platform == "darwin" else 2**20)


def keep_heap() -> bool:
    """Have the C library keep freed memory, up to 2 GiB, for the next step; False where it is not glibc.

    A step of a small network otherwise spends a tenth of its time on pages that the kernel takes and gives again.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; Windows
        return False
    trimmed = mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    return bool(mallopt(M_MMAP_THRESHOLD, MOST_MMAP_THRESHOLD) and trimmed)


def can_share(num_bytes: int) -> bool:
    """Whether so much may be put into shared memory: at most half of what is free, as others want some, too."""
    if resource is not None and 0 <= resource.getrlimit(resource.RLIMIT_NOFILE)[0] < FEW_FILES:
        return False
    try:
        free = os.statvfs(SHARED)
    except (AttributeError, OSError):  # another system has its shared memory elsewhere
        return sys.platform != "linux"
    return 2 * num_bytes <= free.f_bavail * free.f_frsize

"""What this machine allows a process: memory, open files, shared memory; and which of several it is."""

import os
import sys
from pathlib import Path

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None  # type: ignore[assignment]

SHARED = Path("/dev/shm")
FEW_FILES = 512  # open files: every batch in shared memory is one, and every worker has six


def is_main_process() -> bool:
    """Whether this one of several processes is the one that prints results."""
    return int(os.environ.get("RANK", "0")) == 0


def peak_memory_gib() -> float | None:
    """The most resident memory so far; None where the system does not tell (Windows)."""
    if resource is None:
        return None
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / (2**30 if sys.platform == "darwin" else 2**20)


def can_share(num_bytes: int) -> bool:
    """Whether so much may be put into shared memory: at most half of what is free, as others want some, too."""
    if resource is not None and 0 <= resource.getrlimit(resource.RLIMIT_NOFILE)[0] < FEW_FILES:
        return False
    try:
        free = os.statvfs(SHARED)
    except (AttributeError, OSError):  # another system has its shared memory elsewhere
        return sys.platform != "linux"
    return 2 * num_bytes <= free.f_bavail * free.f_frsize

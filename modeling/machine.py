"""What this machine has, and how a program of ours asks the process that it runs in to use it.

Import this before torch: it needs nothing but the standard library.
"""

import ctypes
import os

# Parameters of glibc's mallopt, from its malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

_memory_is_kept = False


def prepare_process() -> None:
    """Make torch on a CPU as fast as the machine allows; programs call this before they import torch, libraries never.

    OpenMP's threads spin while they wait. Where anything else holds a core (a loader process does), a training step of
    0.4 s then takes up to 10 s; so they are made to sleep, unless the environment says otherwise.

    glibc hands every large block back to the system and asks for it anew, page by page, at the next layer: of B0's training
    time on two cores, 40 % went there. So freed memory is kept for the next tensor, up to the program's own peak.
    """
    global _memory_is_kept
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        _memory_is_kept = bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))


def memory_is_kept() -> bool:
    """True if `prepare_process` could make this process keep freed memory: large batches then cost no page faults."""
    return _memory_is_kept


def available_cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_num_workers(num_processes: int) -> int:
    """Loader processes for each training process: a share of the cores, one of them left to the training itself."""
    return min(max(available_cores() // num_processes - 1, 1), 16)

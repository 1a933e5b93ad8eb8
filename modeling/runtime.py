"""Settings of the process for work on a CPU: OpenMP threads wait passively, and glibc keeps freed memory.

Import this before torch: it needs nothing but the standard library.
"""

import ctypes
import os
import sys

# Parameters of glibc's mallopt, from its malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8

SERVER_BLOCK_BYTES = 32 * 2**20  # glibc's own upper limit; a feature map of one photo in B0 takes 5 MB
SERVER_SPARE_BYTES = 128 * 2**20


def prepare_process() -> None:
    """Make torch on a CPU as fast as the machine allows; programs call this before they import torch, libraries never.

    OpenMP threads spin while they wait: where a loader process uses a core, a training step of 0.4 s takes up to 10 s.
    glibc returns every large block to the system and requests it again, page by page, at the next layer: 40 % of B0's
    training time on two cores. So threads sleep, and freed memory is kept for the next tensor.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _tell_malloc((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a redirect on Windows knows no →


def prepare_server() -> None:
    """`prepare_process` for a server: freed memory is returned, except for a reserve large enough for one photo.

    By default glibc gives every thread its own heap, and each would keep what the largest request took (the memory of the
    Space grew by 19 % in ten minutes).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _tell_malloc((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, SERVER_BLOCK_BYTES), (_M_TRIM_THRESHOLD, SERVER_SPARE_BYTES))


def _tell_malloc(*settings: tuple[int, int]) -> None:
    """Set parameters of glibc's allocator; other C libraries have none."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None:
        for parameter, value in settings:
            mallopt(parameter, value)


def own_cores() -> int:
    """Return how many cores this process may use: its share, where a launcher has started several on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def default_num_workers() -> int:
    """Return the number of loader processes: one per core of this process, minus one for the training."""
    return min(max(own_cores() - 1, 1), 16)

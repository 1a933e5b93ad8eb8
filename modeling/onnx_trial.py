"""Run an untrusted ONNX file once in a child process with limits, before it is opened in this one.

A few hundred bytes can describe a network that takes all memory or never ends; nothing but running it shows that.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

MAX_CPU_S = 30  # EfficientNet-B0 at 224 px takes 0.1 s
MAX_WALL_S = 90
MAX_GIB = 4  # of address space, beside the weights


def run_in_child(path: Path, sha256: str, size_px: int) -> str | None:
    """Load and run a network on one image within the limits, once per user and file.

    Returns:
        Why it failed; None if it ran, now or earlier.
    """
    if _mark(sha256).exists():
        return None
    command = [sys.executable, "-P", __file__, str(path), str(size_px), str(MAX_CPU_S), str(MAX_GIB)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=MAX_WALL_S)
    except subprocess.TimeoutExpired:
        return f"it did not end within {MAX_WALL_S} s"
    if child.returncode == 0:
        remember(sha256)
        return None
    if child.returncode < 0:
        return f"it was stopped after {MAX_CPU_S} s of computing or at {MAX_GIB} GiB of memory"
    return (child.stderr.strip().splitlines() or ["no reason given"])[-1][:300]


def remember(sha256: str) -> None:
    """Note that a file has run, so that it opens without a child process from now on."""
    mark = _mark(sha256)
    with contextlib.suppress(OSError):  # where no cache can be written, the file is tried again
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def open_session(path: Path, n_threads: int) -> Any:
    """Open a network in ONNX Runtime, on this many cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Set explicitly, so that ONNX Runtime keeps to the cores of this process and pins its threads to none of them.
    options.intra_op_num_threads = n_threads
    options.log_severity_level = 4  # what it would print about an untrusted file is in the error
    # From bytes, so that the file cannot make ONNX Runtime open others.
    return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def _mark(sha256: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "skin-lesion-classifier" / "onnx" / sha256


def _trial(path: str, size_px: int, max_cpu_s: int, max_gib: int) -> None:
    """The work of the child process."""
    import numpy as np

    with contextlib.suppress(ImportError):  # on Windows the wall time alone is limited
        import resource

        max_bytes = max_gib * 2**30 + 4 * os.path.getsize(path)
        resource.setrlimit(resource.RLIMIT_CPU, (max_cpu_s, max_cpu_s))
        resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    session = open_session(Path(path), 1)
    image = np.random.default_rng(0).normal(size=(1, 3, size_px, size_px)).astype(np.float32)
    session.run(None, {session.get_inputs()[0].name: image})


if __name__ == "__main__":
    try:
        _trial(sys.argv[1], *map(int, sys.argv[2:]))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")

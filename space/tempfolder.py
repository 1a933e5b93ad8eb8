"""The one private folder for uploads. Import it before gradio, which reads the variable when it is imported."""

import atexit
import contextlib
import fcntl
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

VARIABLE = "GRADIO_TEMP_DIR"
PREFIX = "lesion-uploads-"


def make_private_folder(parent: Path) -> Path:
    """Make a folder that only this process uses, and remove those of processes that were killed.

    The owner of a folder holds a lock on it, which the system releases however the owner ends.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # it is in use, or not ours
            descriptor = lock(old)
            shutil.rmtree(old, ignore_errors=True)
            os.close(descriptor)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        with contextlib.suppress(OSError):
            lock(folder)  # until the process ends
            if folder.exists():  # another process that starts now may have removed it before it was locked
                return folder


def lock(folder: Path) -> int:
    """Lock a folder and return its descriptor; raises OSError if that cannot be."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def end_by_sigterm() -> None:
    """End as after Ctrl-C when a host stops the process, so that uploads are removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def upload_folder() -> Path:
    """Return the folder that holds everything visitors send, and the files they get."""
    return Path(os.environ[VARIABLE])


os.environ[VARIABLE] = str(make_private_folder(Path(os.environ.get(VARIABLE) or tempfile.gettempdir())))
atexit.register(shutil.rmtree, os.environ[VARIABLE], ignore_errors=True)

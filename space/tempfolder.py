"""The one folder for what visitors send. Import it before gradio, which reads the variable when it is imported.

gradio's default is one folder for every gradio of the machine; a private one can be swept and removed as a whole.
"""

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
    """Make a folder that only this process uses, and remove those of processes that were killed before they could.

    A folder's owner holds a lock on it for as long as it runs, and the system gives it back whatever ends the owner.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for folder in parent.glob(f"{PREFIX}*"):
        if not is_locked(folder):
            shutil.rmtree(folder, ignore_errors=True)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        with contextlib.suppress(FileNotFoundError):
            fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)  # kept open until the process ends
        if folder.exists():  # another process that starts now may have swept it before it was locked
            return folder


def is_locked(folder: Path) -> bool:
    """True if a running process owns a folder, or it is not ours to remove."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def end_by_sigterm() -> None:
    """End as after Ctrl-C when a host stops the process, so that what is left to clean is cleaned."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def upload_folder() -> Path:
    """Return the folder that holds everything visitors send, and what they get as files."""
    return Path(os.environ[VARIABLE])


os.environ[VARIABLE] = str(make_private_folder(Path(os.environ.get(VARIABLE) or tempfile.gettempdir())))
atexit.register(shutil.rmtree, os.environ[VARIABLE], ignore_errors=True)

"""The one private folder for uploads. Import it before gradio, which reads the variable when it is imported."""

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "lesion-uploads-"


def make_private_folder(parent: Path) -> Path:
    """Make a folder that only this process uses, and remove those of processes that were killed.

    The owner of a folder holds a lock on it, which the system releases however the owner ends.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # it is in use, or not ours
            lock(old)
            shutil.rmtree(old, ignore_errors=True)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        with contextlib.suppress(OSError):
            lock(folder)
            if folder.exists():  # another process that starts now may have removed it before it was locked
                return folder


def lock(folder: Path) -> None:
    """Lock a folder until the process ends; raises OSError if that cannot be."""
    fcntl.flock(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW), fcntl.LOCK_EX | fcntl.LOCK_NB)


FOLDER = make_private_folder(Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()))
os.environ["GRADIO_TEMP_DIR"] = str(FOLDER)
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)

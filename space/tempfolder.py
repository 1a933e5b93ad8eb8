"""The one private folder for uploads. Import it before gradio, which reads the variable when it is imported."""

import atexit
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

VARIABLE = "GRADIO_TEMP_DIR"
PREFIX = "lesion-uploads-"


def end_by_sigterm() -> None:
    """End as after Ctrl-C when a host stops the process, so that uploads are removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def upload_folder() -> Path:
    """Return the folder that holds everything visitors send, and the files they get."""
    return Path(os.environ[VARIABLE])


parent = Path(os.environ.get(VARIABLE) or tempfile.gettempdir())
parent.mkdir(parents=True, exist_ok=True)
os.environ[VARIABLE] = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
atexit.register(shutil.rmtree, os.environ[VARIABLE], ignore_errors=True)

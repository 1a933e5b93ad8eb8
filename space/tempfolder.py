"""The one folder for what visitors send. Import it before gradio, which reads the variable when it is imported."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

VARIABLE = "GRADIO_TEMP_DIR"

# gradio's default is one folder for every gradio of the machine; a private one can be swept and removed as a whole.
if VARIABLE not in os.environ:
    os.environ[VARIABLE] = tempfile.mkdtemp(prefix="lesion-uploads-")
    atexit.register(shutil.rmtree, os.environ[VARIABLE], ignore_errors=True)


def upload_folder() -> Path:
    """Return the folder that holds everything visitors send, and what they get as files."""
    return Path(os.environ[VARIABLE])

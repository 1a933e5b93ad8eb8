"""Uploads: stored in one private folder for minutes, each in a folder of its own that nobody can guess."""

import atexit
import base64
import contextlib
import os
import secrets
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from answers import Photo
from anyio.to_thread import run_sync
from errors import QuestionError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse

from modeling.images import MAX_FILE_BYTES

KEEP_UPLOADS_S = 300  # long enough for a full queue
MAX_FILES = 200
MAX_NAME_CHARS = 120
NO_PHOTO = (
    "There is no photo: POST its file to /gradio_api/upload and send the path of the reply, or send "
    "'data:image/jpeg;base64,' and its bytes in base64. The server fetches nothing from the web."
)
PREFIX = "lesion-uploads-"
PARENT = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir())
PARENT.mkdir(parents=True, exist_ok=True)
FOLDER = Path(tempfile.mkdtemp(prefix=PREFIX, dir=PARENT))
os.environ["GRADIO_TEMP_DIR"] = str(FOLDER)  # gradio reads it when it makes its blocks
MultiPartParser.spool_max_size = 2**16  # larger files wait on the disk, not in memory, while a slow request lasts
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


async def upload(request: Request) -> JSONResponse:
    """Store the files of a multipart request, and return their paths in order."""
    try:
        async with request.form(max_files=MAX_FILES, max_fields=MAX_FILES) as form:
            files = [file for file in form.getlist("files") if isinstance(file, UploadFile)]
            if any((file.size or 0) > MAX_FILE_BYTES for file in files):
                return JSONResponse({"error": f"Too large: at most {MAX_FILE_BYTES // 10**6} MB a file."}, 413)
            paths = [private_file(shown_name(file.filename or "")) for file in files]
            for file, path in zip(files, paths, strict=True):
                with path.open("wb") as stored:
                    await run_sync(shutil.copyfileobj, file.file, stored)
    except HTTPException:  # of the parser, in its own words
        paths = []
    if not paths:
        form_of_request = f"multipart/form-data with 1 to {MAX_FILES} image files in the field 'files'"
        return JSONResponse({"error": f"This is not an upload: send {form_of_request}."}, 400)
    return JSONResponse([str(path) for path in paths])


def received(sent: object, name: object = None) -> Photo:
    """Return a photo from the path of its upload or a data URI, or from an object of one of these and a name."""
    if isinstance(sent, dict):
        name = sent.get("orig_name") or sent.get("name") or name
        sent = sent.get("path") or sent.get("photo")
    with contextlib.suppress(ValueError, OSError):  # no base64, a NUL, or a name that is too long
        if isinstance(sent, str) and sent.startswith("data:"):
            head, _, body = sent.partition(",")
            if head.endswith(";base64") and (data := base64.b64decode(body, validate=True)):
                return Photo(data, shown_name(str(name or "photo")))
        elif isinstance(sent, str) and Path(sent).resolve().is_relative_to(FOLDER.resolve()):
            return Photo(sent, shown_name(str(name or sent)))
    raise QuestionError(NO_PHOTO)


def shown_name(name: str) -> str:
    """Return a visitor's file name without folders, control characters and excess length."""
    base = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in base)[:MAX_NAME_CHARS] or "photo"


def private_file(name: str) -> Path:
    """Return a place for a file of a visitor, in a folder that nobody can guess."""
    folder = FOLDER / secrets.token_hex(16)
    folder.mkdir(mode=0o700, parents=True)  # a janitor removes what has long been empty
    name = name.encode()[-240:].decode(errors="ignore")  # a file system's own limit is 255 bytes
    return folder / (name if name not in (".", "..") else "photo")


@dataclass
class Janitor:
    """Deletes uploads after minutes, also those that a killed server left, and knows how much there is."""

    parent: Path = PARENT
    used_bytes: int = 0

    def sweep(self) -> None:
        """Delete what is older than `KEEP_UPLOADS_S`, and count the rest."""
        oldest, used = time.time() - KEEP_UPLOADS_S, 0
        for root in self.parent.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):  # it is another user's, or gone
                for _, folders, files, here in os.fwalk(root, topdown=False):  # which follows no link
                    for name in (*files, *folders):
                        with contextlib.suppress(OSError):  # it is gone, or a folder that is not empty
                            about = os.stat(name, dir_fd=here, follow_symlinks=False)
                            if about.st_mtime < oldest:
                                (os.unlink if name in files else os.rmdir)(name, dir_fd=here)
                            elif name in files:
                                used += about.st_size
                if root.stat().st_mtime < oldest:
                    root.rmdir()
        self.used_bytes = used

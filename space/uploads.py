"""Uploads: stored in one private folder for minutes, each in a folder of its own that nobody can guess."""

import contextlib
import os
import secrets
import shutil
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import tempfolder
from answers import EXPIRED, Photo, QuestionError
from anyio.to_thread import run_sync
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from modeling.images import MAX_FILE_BYTES

KEEP_UPLOADS_S = 300  # long enough for a full queue
MAX_FILES = 200
MAX_NAME_CHARS = 120
TWO_STEPS = "A photo is sent in two steps: POST the file to /gradio_api/upload, then send the path of the reply."
FAULT = "This is a server error, not your fault. Try again; if it remains, tell the owner of this page."


async def upload(request: Request) -> JSONResponse:
    """Store the files of a multipart request, and return their paths in order."""
    paths = []
    try:
        async with request.form(max_files=MAX_FILES, max_fields=MAX_FILES) as form:
            files = form.getlist("files")
            if not files or not all(isinstance(file, UploadFile) for file in files):
                return JSONResponse({"error": "Send image files or zip archives in the field 'files'."}, 400)
            for file in files:
                assert isinstance(file, UploadFile)
                if (file.size or 0) > MAX_FILE_BYTES:
                    return JSONResponse({"error": f"Too large: at most {MAX_FILE_BYTES // 10**6} MB a file."}, 413)
                path = private_file(shown_name(file.filename or ""))
                with path.open("wb") as stored:
                    await run_sync(shutil.copyfileobj, file.file, stored)
                paths.append(str(path))
    except HTTPException:  # of the parser, in its own words
        return JSONResponse(
            {"error": f"This is no upload: send multipart/form-data with at most {MAX_FILES} files."}, 400
        )
    return JSONResponse(paths)


def received(path: object, name: object) -> Photo:
    """Return an uploaded file as a photo with the visitor's own file name; raises a QuestionError if there is none."""
    if not isinstance(path, str) or not path:
        raise QuestionError("No photo came; upload an image file and send its path.")
    if path.startswith(("http:", "https:")):
        raise QuestionError("This server fetches nothing for visitors: send the file itself, not its address.")
    if not is_inside(path, tempfolder.upload_folder()):
        raise QuestionError(TWO_STEPS)
    shown = shown_name(name if isinstance(name, str) and name else path)
    if not os.path.isfile(path):
        raise QuestionError(f"{shown} {EXPIRED}")
    return Photo(path, shown)


def is_inside(path: str, folder: Path) -> bool:
    """True if a visitor's text is the path of something in a folder, links resolved."""
    try:
        return Path(path).resolve().is_relative_to(folder.resolve())
    except (ValueError, OSError):  # a NUL, or a name that is too long
        return False


def shown_name(name: str) -> str:
    """Return a visitor's file name without folders, control characters and excess length."""
    base = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in base)[:MAX_NAME_CHARS] or "photo"


def private_file(name: str) -> Path:
    """Return a place for a file of a visitor, in a folder that nobody can guess."""
    folder = tempfolder.upload_folder() / secrets.token_hex(16)
    folder.mkdir()
    name = name.encode()[-240:].decode(errors="ignore")  # a file system's own limit is 255 bytes
    return folder / (name if name not in (".", "..") else "photo")


def note_fault(error: BaseException) -> None:
    """Log where one of our own faults happened; its message may hold what a visitor sent, so it is left out."""
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-4:]))
    print(f"fault: {type(error).__name__} at {where}", file=sys.stderr)


@dataclass
class Janitor:
    """Deletes uploads after minutes, and knows how much the folder holds."""

    folder: Path
    used_bytes: int = 0

    def sweep(self) -> None:
        """Delete what is older than `KEEP_UPLOADS_S`, and count the rest."""
        oldest, used = time.time() - KEEP_UPLOADS_S, 0
        for directory, _, names in os.walk(self.folder, topdown=False):
            for file in (Path(directory) / name for name in names):
                with contextlib.suppress(FileNotFoundError):
                    about = file.lstat()
                    if about.st_mtime < oldest:
                        file.unlink()
                    else:
                        used += about.st_size
            if Path(directory) != self.folder:
                with contextlib.suppress(OSError):  # it is not empty
                    if os.path.getmtime(directory) < oldest:
                        os.rmdir(directory)
        self.used_bytes = used

"""JSON, hashes and names, with helpers for untrusted input."""

import hashlib
import json
import os
import reprlib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MAX_JSON_BYTES = 16 * 1024**2  # config.json has 0.9 MB, most of it the abstention rule
MAX_TEXT = 200  # characters of a name

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
shortened = _SHORT.repr  # truncates untrusted text for error messages


class ModelFolderError(ValueError):
    """A model folder or repository that cannot be opened, with the reason and what to do."""


def write_json(path: Path, content: Any, *, indent: int = 2) -> None:
    """Write strictly valid JSON (NaN is refused), with a final newline."""
    path.write_text(json.dumps(content, indent=indent, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read an untrusted JSON object: of bounded size, valid text, every number finite, every key once.

    Raises:
        ModelFolderError: If it is not that, or there is no such file.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelFolderError(f"{path} is larger than {MAX_JSON_BYTES // 1024**2} MiB; refused.")
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
        # Python reads NaN, 1e999 and half a surrogate pair, which nothing else could show or write again.
        json.dumps(content, allow_nan=False, ensure_ascii=False).encode()
    except ModelFolderError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFolderError(f"{path} is not valid JSON ({str(error)[:300]}).") from error
    if not isinstance(content, dict):
        raise ModelFolderError(f"{path}: a JSON object was expected, got {shortened(content)}.")
    return content


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"a key occurs twice among {shortened([key for key, _ in pairs])}")
    return content


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_name(text: str) -> bool:
    """True if a text is short and printable, so that tables, messages and files can show it."""
    return 1 <= len(text) <= MAX_TEXT and text.isprintable()


def files_of(folder: Path) -> list[Path]:
    """Return all files below a folder, sorted, without hidden ones and compiled Python."""
    inside = [path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink()]
    return [
        path
        for path in inside
        if not any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)
    ]


def flush(path: Path) -> None:
    """Force a file or folder out of the system's buffers, so that a power cut cannot take it back."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

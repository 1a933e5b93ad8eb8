"""Errors as sentences for visitors, and what is logged."""

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from modeling.files import ModelFolderError
from modeling.images import ImageError

FAULT = "This is a server error, not your fault. Try again; if it persists, tell the owner of this page."


class QuestionError(ValueError):
    """A request that cannot be answered as it is, or not now; the message says why, and what to do."""


@contextlib.contextmanager
def in_sentences(refuse: Callable[[str], Exception]) -> Iterator[None]:
    """Turn mistakes of the caller into their sentences, and faults of ours into one that says nothing of the request."""
    try:
        yield
    except (ImageError, QuestionError, ModelFolderError) as error:
        raise refuse(str(error)) from None
    except Exception as error:
        note_fault(error)
        raise refuse(FAULT) from None


def note_fault(error: BaseException) -> None:
    """Log where one of our own faults happened; its message may hold what a visitor sent, so it is left out."""
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-4:]))
    print(f"fault: {type(error).__name__} at {where}", file=sys.stderr)

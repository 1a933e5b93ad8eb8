"""What is wrong with images and rows: counted and named in one error, or listed in skipped.csv."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from modeling.rows import write_rows


class DataError(ValueError):
    """The data cannot be used as they are; the message counts what is wrong, names the first, and says what to do."""


class Problem(NamedTuple):
    """One image or row that cannot be used; the error counts by `kind`."""

    image_id: str
    kind: str
    detail: str = ""


def counts(problems: Sequence[Problem], *, shown: int = 5) -> list[str]:
    """Return for each kind "3 × image cannot be read: a, b, c (a: …)", in order of appearance."""
    lines = []
    for kind in dict.fromkeys(problem.kind for problem in problems):
        of_kind = [problem for problem in problems if problem.kind == kind]
        names = ", ".join(problem.image_id for problem in of_kind[:shown])
        more = ", …" if len(of_kind) > shown else ""
        detail = f" ({of_kind[0].image_id}: {of_kind[0].detail})" if of_kind[0].detail else ""
        lines.append(f"{len(of_kind)} × {kind}: {names}{more}{detail}")
    return lines


def describe(problems: Sequence[Problem]) -> str:
    """Return the message of the error: counts per kind, the first few of each, and what to do."""
    n = len({problem.image_id for problem in problems})
    lines = [f"{n} image{'s' if n > 1 else ''} cannot be used:", *(f"  {line}" for line in counts(problems))]
    lines.append(
        "Copy or download the broken files again, correct the CSVs (those of a partial copy list just its images), "
        "or pass --skip_bad_images to leave these out and list them in skipped.csv."
    )
    return "\n".join(lines)


def write_skipped(problems: Sequence[Problem], path: Path) -> None:
    """Write image_id and reason of each problem."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"image_id": problem.image_id, "reason": ": ".join(filter(None, problem[1:]))} for problem in problems]
    write_rows(path, rows, columns=("image_id", "reason"))

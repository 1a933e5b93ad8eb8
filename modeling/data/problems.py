"""What is wrong with images and rows: counted and named in one error, or listed in skipped.csv."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

MAX_AGE_YEARS = 120
BLANK = ("", "na", "n/a", "nan", "none", "unknown")


class DataError(ValueError):
    """The data cannot be used as they are; the message counts what is wrong, names the first, and says what to do."""


class Problem(NamedTuple):
    """One image or row that cannot be used; `kind` is what is counted in the error."""

    image_id: str
    path: str
    kind: str
    detail: str = ""


def read_ages(image_ids: Sequence[str], values: Sequence[Any]) -> tuple[list[float | None], list[Problem]]:
    """Return ages in years (None where blank), and what is no age of a person."""
    ages: list[float | None] = []
    problems = []
    for image_id, value in zip(image_ids, values, strict=True):
        text = "" if value is None else str(value).strip()
        try:
            age = None if text.lower() in BLANK else float(text)
        except ValueError:
            age = float("nan")
        if age is not None and not 0 <= age <= MAX_AGE_YEARS:
            problems.append(Problem(image_id, "", f"age is no number of years from 0 to {MAX_AGE_YEARS}", text[:40]))
            age = None
        ages.append(age)
    return ages, problems


def counts(problems: Sequence[Problem]) -> str:
    """Return "3 × image file is empty; 1 × row without an image file", in the order of appearance."""
    kinds = list(dict.fromkeys(problem.kind for problem in problems))
    return "; ".join(f"{sum(problem.kind == kind for problem in problems)} × {kind}" for kind in kinds)


def describe(problems: Sequence[Problem], *, shown: int = 5) -> str:
    """Return the message of the error: counts per kind, the first few of each, and what to do."""
    n = len({problem.image_id for problem in problems})
    lines = [f"{n} image{'s' if n > 1 else ''} cannot be used:"]
    for kind in dict.fromkeys(problem.kind for problem in problems):
        of_kind = [problem for problem in problems if problem.kind == kind]
        names = ", ".join(problem.image_id for problem in of_kind[:shown])
        more = ", …" if len(of_kind) > shown else ""
        detail = f" ({of_kind[0].image_id}: {of_kind[0].detail})" if of_kind[0].detail else ""
        lines.append(f"  {len(of_kind)} × {kind}: {names}{more}{detail}")
    lines.append(
        "Copy or download the broken files again, correct the CSVs (those of a partial copy list just its images), "
        "or pass --skip_bad_images to leave these out and list them in skipped.csv."
    )
    return "\n".join(lines)


def write_skipped(problems: Sequence[Problem], path: Path) -> None:
    """Write image_id, path and reason of each problem."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "path", "reason"])
        for problem in problems:
            reason = f"{problem.kind}: {problem.detail}" if problem.detail else problem.kind
            writer.writerow([problem.image_id, problem.path, reason])

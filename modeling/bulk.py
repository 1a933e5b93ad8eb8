"""Archives: classify any number of image files, one row per image; a killed run resumes.

Images are split into chunks, which the processes take in turn. A finished chunk is a file in `<output>.parts`, so a kill
costs at most one chunk a process, and the same command resumes, with any number of processes. The last process to finish
merges the chunks in the order of the images, and writes `<output>.json` beside the output (provenance and counts).
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from modeling.classifier import LesionClassifier
from modeling.engines import BATCH_SIZE
from modeling.files import flush, read_json
from modeling.images import IMAGE_SUFFIXES
from modeling.prediction import rounded
from modeling.rows import Row, columns_of, printable, row_of, write_rows

CHUNK_SIZE = 2 * BATCH_SIZE  # images: the cost of a kill for each process
ROW_GROUP_SIZE = 32 * CHUNK_SIZE  # rows of a Parquet file that are held in memory at once


class ArchiveError(RuntimeError):
    """The images cannot be classified, with the reason and what to do."""


def list_files(inputs: Sequence[str]) -> list[str]:
    """Return the inputs in their order; of a folder, the files at any depth that end like an image, by name.

    Hidden folders and links to folders are left out. A path that comes twice counts once.

    Raises:
        ArchiveError: If an input does not exist, a folder cannot be read, or there is no image.
    """
    files: dict[str, None] = {}
    for name in inputs:
        if not os.path.lexists(name):
            raise ArchiveError(f"{name!r:.300} does not exist; check the path.")
        files.update(dict.fromkeys(_images_below(name) if os.path.isdir(name) else [name]))
    if not files:
        raise ArchiveError(f"there is no image in {', '.join(map(repr, inputs)):.300}.")
    return list(files)


def _images_below(top: str) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise ArchiveError(f"the folder {error.filename!r} cannot be read ({error.strerror}); check its rights.")

    for folder, below, names in os.walk(top, onerror=refuse):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from (os.path.join(folder, name) for name in sorted(names) if name.lower().endswith(IMAGE_SUFFIXES))


def classify_archive(
    classifier: LesionClassifier, inputs: Sequence[str], output: Path, *, tta: bool = False
) -> Row | None:
    """Classify all images of `inputs` and write one row for each; each process of `accelerate launch` calls this.

    Args:
        classifier: The model.
        inputs: Files and folders, see `list_files`.
        output: A new .csv or .parquet file, or that of the same run.
        tta: Average over the eight flips and quarter turns.

    Returns:
        The content of `<output>.json`, with the numbers of rows: `images`, `unreadable` and `abstained`; None while other
        processes are still at work.

    Raises:
        ArchiveError: If the inputs cannot be read, or the output cannot be written or is of another run.
    """
    if output.suffix not in (".csv", ".parquet"):
        raise ArchiveError(f"--output must end in .csv or .parquet, got {output.name!r:.300}.")
    if output.suffix == ".parquet" and not find_spec("pyarrow"):
        raise ArchiveError('Parquet needs pyarrow: pip install -e ".[train]" in a clone; CSV works without it.')
    run = {
        **classifier.provenance,
        "priors": {
            code: rounded(float(prior)) for code, prior in zip(classifier.codes, classifier.priors, strict=True)
        },
        "tta": tta,
        "inputs": [printable(os.path.abspath(given)) for given in inputs],
    }
    try:
        return _classify_archive(classifier, inputs, output, run)
    except OSError as error:
        raise ArchiveError(
            f"{output} cannot be written ({error.strerror or error}). Make room, or choose another --output; finished "
            "work is kept, and the same command resumes."
        ) from error


def _classify_archive(classifier: LesionClassifier, inputs: Sequence[str], output: Path, run: Row) -> Row | None:
    from filelock import FileLock

    summary, parts = output.with_name(f"{output.name}.json"), output.with_name(f"{output.name}.parts")
    if output.exists():
        return _of_same_run(run, summary, output)
    if not (parts / "run").exists():
        files = list_files(inputs)
        parts.mkdir(parents=True, exist_ok=True)
        _write_whole(parts / "files", files)
        _write_whole(parts / "run", {"run": run})
    _of_same_run(run, parts / "run", output)
    files = json.loads((parts / "files").read_text(encoding="utf-8"))
    starts = range(0, len(files), CHUNK_SIZE)
    chunks = {parts / f"{start:09d}.json": files[start : start + CHUNK_SIZE] for start in starts}
    _classify(classifier, chunks, tta=run["tta"])
    with FileLock(parts / "lock"):  # one process merges
        if not output.exists() and all(path.exists() for path in chunks):
            columns = columns_of(classifier.codes, [point.name for point in classifier.operating_points])
            merged = parts / f"merged{output.suffix}"
            counts = _merge(list(chunks), merged, columns)
            _write_whole(summary, {"run": run, "notice": classifier.notice, **counts})
            merged.replace(output)
        if output.exists():
            shutil.rmtree(parts, ignore_errors=True)  # another process may have done it
            return read_json(summary)
    return None


def _of_same_run(run: Row, notes: Path, output: Path) -> Row:
    """Return what was noted of an earlier run, which must have been this one."""
    state = read_json(notes) if notes.exists() else {}
    before = state.get("run", {})
    different = [f"{key} was {before.get(key)!r} and is {run[key]!r}" for key in run if before.get(key) != run[key]]
    if different:
        raise ArchiveError(
            f"{output} exists, or has unfinished work, of another run: {'; '.join(different)}. Choose another --output, or "
            f"move {output} away and delete {output}.parts to start over."
        )
    return state


def _write_whole(path: Path, content: Any) -> None:
    """Write a JSON file that is whole or not there, also after a power cut."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    flush(partial)
    partial.replace(path)


def _classify(classifier: LesionClassifier, chunks: dict[Path, list[str]], *, tta: bool) -> None:
    """Classify this process' share of the chunks, unless an earlier run did."""
    rank, count = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    mine = [(path, names) for path, names in list(chunks.items())[rank::count] if not path.exists()]
    images = tqdm([name for _, names in mine for name in names], unit=" images", disable=rank != 0)
    answers = classifier.predict_each(images, tta=tta)
    for path, names in mine:
        _write_whole(path, [row_of(answer, name) for name, answer in zip(names, answers, strict=False)])


def _merge(chunks: Sequence[Path], merged: Path, columns: dict[str, type]) -> Counter[str]:
    """Write all chunks into one file, in order; return the counts of rows."""
    counts = Counter(images=0, unreadable=0, abstained=0)

    def rows() -> Iterator[Row]:
        for path in chunks:
            for row in json.loads(path.read_text(encoding="utf-8")):
                counts.update(images=1, unreadable="error" in row, abstained=row.get("abstained", False))
                yield row

    if merged.suffix == ".csv":
        write_rows(merged, rows(), columns)
    else:
        _write_parquet(merged, rows(), columns)
    flush(merged)
    return counts


def _write_parquet(path: Path, rows: Iterator[Row], columns: dict[str, type]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    types = {str: pa.string(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    with parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, ROW_GROUP_SIZE)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))

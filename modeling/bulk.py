"""Archives: classify any number of image files, one row per image; a killed run resumes.

Images are split into chunks, which the processes take in turn. A finished chunk is a file in `<output>.parts`, so a kill
costs at most one chunk a process, and the same command resumes, with any number of processes. The last process to finish
merges the chunks in the order of the images, and writes `<output>.json` beside the output (provenance, counts and hash).
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from modeling.classifier import LesionClassifier
from modeling.engines import BATCH_SIZE
from modeling.files import ModelFolderError, file_sha256, flush, read_json
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

    `inputs` are as for `list_files`, `tta` is as for `predict`, and `output` is a new .csv or .parquet file, or that of the
    same run.

    Returns:
        The content of `<output>.json`, with the numbers of rows: `images`, `unreadable` and `abstained`; None while other
        processes are still at work.

    Raises:
        ArchiveError: If the inputs cannot be read, or the output cannot be written, is damaged or is of another run.
        ModelFolderError: If two columns would have the same name.
    """
    if output.suffix not in (".csv", ".parquet"):
        raise ArchiveError(f"--output must end in .csv or .parquet, got {output.name!r:.300}.")
    if output.suffix == ".parquet" and not find_spec("pyarrow"):
        raise ArchiveError('Parquet needs pyarrow: pip install -e ".[train]" in a clone; CSV works without it.')
    columns = columns_of(classifier.codes, [point.name for point in classifier.operating_points])
    run = {
        **classifier.provenance,
        "priors": {
            code: rounded(float(prior)) for code, prior in zip(classifier.codes, classifier.priors, strict=True)
        },
        "tta": tta,
        "inputs": [printable(os.path.abspath(given)) for given in inputs],
    }
    try:
        return _classify_archive(classifier, inputs, output, run, columns)
    except OSError as error:
        raise ArchiveError(
            f"{output} cannot be written ({error.strerror or error}). Make room, or choose another --output; finished "
            "work is kept, and the same command resumes."
        ) from error


def _classify_archive(
    classifier: LesionClassifier, inputs: Sequence[str], output: Path, run: Row, columns: dict[str, type]
) -> Row | None:
    parts = _beside(output, ".parts")
    with _locked(output):
        if output.exists():
            return _finished(run, output)
        if not (parts / "run").exists() and not any(parts.glob("*.json")):
            files = list_files(inputs)
            parts.mkdir(exist_ok=True)
            _write_whole(parts / "files", files)
            _write_whole(parts / "run", {"run": run})
        _of_same_run(run, parts / "run", output)
        if not (files := _read_list(parts / "files")):
            raise ArchiveError(f"{parts / 'files'} is damaged. {_advice(output)}")
    starts = range(0, len(files), CHUNK_SIZE)
    chunks = {parts / f"{start:09d}.json": files[start : start + CHUNK_SIZE] for start in starts}
    try:
        _classify(classifier, chunks, tta=run["tta"])
    except FileNotFoundError:
        if not output.exists():  # else an equal command has finished, and deleted the parts
            raise
    with _locked(output):
        if not output.exists() and all(len(_read_list(path)) == len(names) for path, names in chunks.items()):
            merged = parts / f"merged{output.suffix}"
            counts = _merge(list(chunks), merged, columns)
            notes = {"run": run, "notice": classifier.notice, **counts, "sha256": file_sha256(merged)}
            _write_whole(_beside(output, ".json"), notes)
            merged.replace(output)
        return _finished(run, output) if output.exists() else None


def _beside(output: Path, ending: str) -> Path:
    return output.with_name(output.name + ending)


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Let one process at a time begin or merge; the lock is beside the output, since the parts are deleted."""
    from filelock import FileLock

    path = output.with_name(f".{output.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()  # where no file can be, FileLock would try forever
    with FileLock(path):
        try:
            yield
        finally:
            if output.exists() or not _beside(output, ".parts").exists():
                path.unlink(missing_ok=True)


def _advice(output: Path) -> str:
    return f"Choose another --output, or move {output} away and delete {output}.parts to start over."


def _finished(run: Row, output: Path) -> Row:
    """Return the content of `<output>.json`, if the output is whole and of this run; delete what is left of its parts."""
    state = _of_same_run(run, _beside(output, ".json"), output)
    if file_sha256(output) != state.get("sha256"):
        raise ArchiveError(f"{output} was changed or damaged after its run. {_advice(output)}")
    shutil.rmtree(_beside(output, ".parts"), ignore_errors=True)
    return state


def _of_same_run(run: Row, notes: Path, output: Path) -> Row:
    """Return what was noted of an earlier run, which must have been this one."""
    try:
        state = read_json(notes) if notes.exists() else {}
    except ModelFolderError as error:
        raise ArchiveError(f"{error} {_advice(output)}") from error
    before = state["run"] if isinstance(state.get("run"), dict) else {}
    different = [f"{key} was {before.get(key)!r} and is {run[key]!r}" for key in run if before.get(key) != run[key]]
    if different:
        raise ArchiveError(
            f"{output} exists, or has unfinished work, of another run: {'; '.join(different)}. {_advice(output)}"
        )
    return state


def _read_list(path: Path) -> list[Any]:
    """Return the list in a JSON file; an empty one if there is no such file, or it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    return content if isinstance(content, list) else []


def _write_whole(path: Path, content: Any) -> None:
    """Write a JSON file atomically, so that it is complete even after a power cut."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    flush(partial)
    partial.replace(path)


def _classify(classifier: LesionClassifier, chunks: dict[Path, list[str]], *, tta: bool) -> None:
    """Classify this process' share of the chunks, unless an earlier run did; damaged ones are classified again."""
    rank, count = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    mine = [(path, names) for path, names in list(chunks.items())[rank::count] if len(_read_list(path)) != len(names)]
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

"""Classify any number of images over all processes: streamed, resumable, one row per image.

accelerate launch -m modeling.predictor MODEL DIR_OR_DATASET --output out.parquet

The images are counted off in chunks, and the chunks dealt out to the processes. A finished chunk is a file in
`<output>.parts` that is whole or not there: a killed run loses at most one chunk a process, and the same command goes
on, with any number of processes. When all are there, they are merged in the order of the images. Then lie beside the
output `<output>.json` (provenance and counts) and `<output>.rows` (each file, its size and time, and its row), by which
later changes of the files are noticed.
"""

import json
import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from tqdm import tqdm

from modeling.classifier import LesionClassifier
from modeling.engines import BATCH_SIZE
from modeling.files import ModelFolderError, file_sha256, flush, read_json, write_json
from modeling.images import ImageInput
from modeling.inputs import (
    ArchiveError,
    ListedFiles,
    StreamedDataset,
    dataset_revision,
    is_dataset,
    list_files,
    needs,
    read_listing,
    side_by_side,
)
from modeling.rows import Row, columns_of, printable, row_of, write_rows
from modeling.runtime import Processes

CHUNK_SIZE = 2 * BATCH_SIZE  # images: what a kill can cost each process
ROW_GROUP_SIZE = 32 * CHUNK_SIZE  # rows of a Parquet file that are held in memory at once
FORMATS = (".csv", ".parquet")
COUNTS = ("images", "unreadable", "abstained")


@dataclass(frozen=True)
class Summary:
    """What came of a run; on processes other than the first only what they did themselves, `classified_now`, counts."""

    images: int
    unreadable: int
    abstained: int
    classified_now: int
    processes: int
    seconds: float
    changes: str

    def __str__(self) -> str:
        """Say it in a sentence."""
        now = "complete already"
        if self.classified_now:
            rate = self.classified_now / self.seconds
            now = f"{self.classified_now} of them now by process 1 of {self.processes}, {rate:.1f} a second"
        return (
            f"{self.images} images, one row each ({now}); {self.unreadable} could not be read (column error), "
            f"{self.abstained} abstained on.{self.changes}"
        )


def classify_archive(
    classifier: LesionClassifier,
    inputs: Sequence[str],
    output: Path,
    *,
    processes: Processes,
    split: str | None = None,
    tta: bool = False,
    update: bool = False,
) -> Summary:
    """Classify all images of `inputs` and write one row for each; all processes call this.

    Args:
        classifier: The model.
        inputs: Files and folders, see `list_files`, or one dataset, see `StreamedDataset`.
        output: A new .csv or .parquet file, or that of the same run, which then goes on.
        processes: Of `join_processes`.
        split: Read the input as a dataset, and take this split.
        tta: Average over the eight flips and quarter turns.
        update: Where files have changed since the run ended, classify those and keep the rows of the others.

    Raises:
        ArchiveError: If an input cannot be read, the output not be written or is another's, or a library is missing.
    """
    start, classified, parts = time.monotonic(), 0, _beside(output, ".parts")
    columns = _columns(classifier, output)
    name, revision = dataset_revision(inputs[0], _own(output)) if is_dataset(inputs, split) else ("", None)
    if update and revision:
        raise ArchiveError("--update is for files and folders; classify a changed dataset into a new --output.")
    on_hub = bool(revision) and not os.path.lexists(name)
    run = {
        **{key: value for key, value in classifier.provenance.items() if key != "data_fingerprint"},
        "tta": tta,
        "inputs": [printable(given) for given in inputs],
        # Where relative names begin; of a dataset on the Hub the name is all.
        "folder": None if on_hub or all(map(os.path.isabs, inputs)) else printable(os.getcwd()),
        "split": split,
        "data_revision": revision,
    }
    try:
        with _locked(output, processes):
            if processes.rank == 0:
                _begin(run, inputs, output, update=update)
            processes.wait()
            if (parts / "run.json").exists():
                source = StreamedDataset(name, revision, split) if revision else ListedFiles(parts)
                classified = _classify_chunks(classifier, source, parts, processes, tta=tta)
                processes.wait()
                if processes.rank == 0:
                    _merge(source, output, columns, {"provenance": classifier.provenance, "notice": classifier.notice})
            state = read_json(_beside(output, ".json")) if processes.rank == 0 else {}
            changes = _changes(inputs, output) if processes.rank == 0 and not revision else ""
    except OSError as error:
        raise ArchiveError(
            f"{output} cannot be written ({error.strerror or error}). Make room, or choose another --output; what is "
            "finished is kept, and the same command goes on."
        ) from error
    images, unreadable, abstained = (int(state.get(key, 0)) for key in COUNTS)
    return Summary(images, unreadable, abstained, classified, processes.count, time.monotonic() - start, changes)


# ---- beginning and resuming ----------------------------------------------------------------------------------------


def _beside(output: Path, ending: str) -> Path:
    return output.with_name(output.name + ending)


def _own(output: Path) -> list[Path]:
    return [_beside(output, ending) for ending in ("", ".json", ".rows", ".parts")]


@contextmanager
def _locked(output: Path, processes: Processes) -> Iterator[None]:
    """Keep other runs away from this output; at the end, leave no parts but those of an unfinished run."""
    if processes.rank != 0:
        yield
        return
    from filelock import FileLock, Timeout

    parts = _beside(output, ".parts")
    parts.mkdir(parents=True, exist_ok=True)
    lock = FileLock(parts / "lock")  # ends with the process, also when it is killed
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ArchiveError(f"another run is writing {output}; wait for it, or choose another --output.") from None
    try:
        yield
    finally:
        if not (parts / "run.json").exists():
            shutil.rmtree(parts)
        lock.release()


def _begin(run: Row, inputs: Sequence[str], output: Path, *, update: bool) -> None:
    """Make the parts of a new run or of an update, or check that they are of this run; none if all is done already."""
    parts, kept = _beside(output, ".parts"), _beside(output, ".rows")
    if (parts / "run.json").exists():
        advice = f"Run the earlier command to complete it, or delete {parts} to start anew"
        _check_same(run, parts / "run.json", f"{parts} holds unfinished work of another run", advice)
        return
    if output.exists():
        advice = "Move it away, or choose another --output"
        _check_same(run, _beside(output, ".json"), f"{output} exists and is not of this run", advice)
        if not (update and _changes(inputs, output)):
            return
        if file_sha256(output) != read_json(_beside(output, ".json")).get("sha256"):
            raise ArchiveError(f"{output} was changed after its run. {advice}.")
    for left in parts.glob("*-*.json"):  # of a run that ended as it was tidying up
        left.unlink()
    if run["data_revision"] is None:
        before = read_listing(kept) if output.exists() else ()
        lines = 0
        with (parts / "files").open("w", encoding="ascii") as listing:
            now = list_files(inputs, leave_out=_own(output), missing_ok=output.exists())
            for old, file, row in side_by_side(before, now):
                if file is not None:
                    listing.write(json.dumps([*file, row if old == file else None]) + "\n")
                    lines += 1
        if not lines:
            raise ArchiveError(f"there is no file in {', '.join(map(repr, inputs))}.")
    _write_whole(parts / "run.json", json.dumps({"run": run}, indent=2))


def _check_same(run: Row, path: Path, problem: str, advice: str) -> None:
    """Raise an ArchiveError unless the file says that it is of this run."""
    try:
        content = read_json(path) if path.exists() else {}
    except ModelFolderError as error:
        raise ArchiveError(f"{error} {advice}.") from error
    before = content["run"] if isinstance(content.get("run"), dict) else {}
    different = [f"{key} was {before.get(key)!r} and is {run[key]!r}" for key in run if before.get(key) != run[key]]
    if different:
        raise ArchiveError(f"{problem}: {'; '.join(different)}. {advice}.")


def _changes(inputs: Sequence[str], output: Path) -> str:
    """Say how the files differ from those that were classified; "" if they do not."""
    counts: Counter[str] = Counter()
    now = list_files(inputs, leave_out=_own(output), missing_ok=True)
    for old, file, _ in side_by_side(read_listing(_beside(output, ".rows")), now):
        if old != file:
            counts["added" if old is None else "gone" if file is None else "replaced"] += 1
    differences = ", ".join(f"{number} {what}" for what, number in sorted(counts.items()))
    return differences and f" Files have changed since: {differences}; --update classifies only what differs."


def _write_whole(path: Path, text: str) -> None:
    """Write a file that is whole or not there, also after a power cut."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    flush(partial)
    partial.replace(path)


# ---- classifying ---------------------------------------------------------------------------------------------------


def _chunk(parts: Path, part: int, number: int) -> Path:
    return parts / f"{part:05d}-{number:07d}.json"


def _read_chunk(path: Path) -> list[Row]:
    """Return the rows of a finished chunk; if it is damaged, delete it, so that the next run makes it anew."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, FileNotFoundError) as error:
        path.unlink(missing_ok=True)
        raise ArchiveError(f"{path} was damaged; run the same command again to classify its images anew.") from error


def _classify_chunks(
    classifier: LesionClassifier, source: ListedFiles | StreamedDataset, parts: Path, processes: Processes, *, tta: bool
) -> int:
    """Classify the chunks that fall to this process and are not there yet; return the number of images."""
    present = {path.name for path in parts.glob("*-*.json")}
    in_part = Counter(name.partition("-")[0] for name in present)
    by_part = source.num_parts >= processes.count  # else each process reads all parts, and takes its chunks of them
    pending: deque[tuple[Path, list[tuple[str, Row | None]]]] = deque()

    def is_whole(part: int) -> bool:
        """True if the last chunk of a part is there, which alone is not full."""
        last = _chunk(parts, part, in_part[f"{part:05d}"] - 1)
        return last.name in present and len(_read_chunk(last)) < CHUNK_SIZE

    def images() -> Iterator[ImageInput | Callable[[], ImageInput] | None]:
        for part in range(source.num_parts):
            if (by_part and part % processes.count != processes.rank) or is_whole(part):
                continue
            items = source.read(part)
            for number in count():
                chunk = list(islice(items, CHUNK_SIZE))
                path, missing = _chunk(parts, part, number), CHUNK_SIZE - len(chunk)
                if path.name not in present and (by_part or (part + number) % processes.count == processes.rank):
                    pending.append((path, [(item.name, item.row) for item in chunk]))
                    yield from (item.image for item in chunk)
                    yield from [None] * missing  # so that batches are those of a run that nobody interrupted
                if missing:
                    break

    done = 0
    answers = classifier.predict_each(images(), tta=tta)
    left = None if source.total is None else max(0, source.total - len(present) * CHUNK_SIZE) // processes.count
    with tqdm(total=left, unit=" images", disable=processes.rank != 0, mininterval=1.0) as progress:
        while results := list(islice(answers, CHUNK_SIZE)):
            path, named = pending.popleft()
            rows = [row or row_of(answer, name) for (name, row), answer in zip(named, results, strict=False)]
            _write_whole(path, json.dumps(rows))
            progress.update(len(rows))
            done += sum(row is None for _, row in named)
    return done


# ---- rows ----------------------------------------------------------------------------------------------------------


def _columns(classifier: LesionClassifier, output: Path) -> dict[str, type]:
    """Return the columns of the output, in order, with their types, if it can be written at all."""
    if output.suffix not in FORMATS:
        raise ArchiveError(f"--output must end in {' or '.join(FORMATS)}, got {output.name!r:.300}.")
    if output.suffix == ".parquet":
        needs("pyarrow", "writing Parquet")
    return columns_of(classifier.codes, [point.name for point in classifier.operating_points])


def _merge(source: ListedFiles | StreamedDataset, output: Path, columns: dict[str, type], notes: Row) -> None:
    """Write all chunks into the output, in order, and beside it what is known of it; then remove the parts."""
    parts, counts = _beside(output, ".parts"), Counter(dict.fromkeys(COUNTS, 0))

    def rows() -> Iterator[Row]:
        for part in range(source.num_parts):
            for number in count():
                chunk = _read_chunk(_chunk(parts, part, number))
                for row in chunk:
                    counts.update(images=1, unreadable="error" in row, abstained=row.get("abstained", False))
                    yield row
                if len(chunk) < CHUNK_SIZE:
                    break

    merged = parts / f"merged{output.suffix}"
    if output.suffix == ".csv":
        write_rows(merged, rows(), columns)
    else:
        _write_parquet(merged, columns, rows(), notes)
    flush(merged)
    state = {
        **read_json(parts / "run.json"),
        **notes,
        **counts,
        "columns": list(columns),
        "sha256": file_sha256(merged),
    }
    if isinstance(source, ListedFiles):
        with (parts / "rows").open("w", encoding="ascii") as kept:
            for (file, _), row in zip(read_listing(source.listing), rows(), strict=True):
                kept.write(json.dumps([*file, row]) + "\n")
        (parts / "rows").replace(_beside(output, ".rows"))
    write_json(parts / "state.json", state)
    (parts / "state.json").replace(_beside(output, ".json"))
    merged.replace(output)
    (parts / "run.json").unlink()  # the parts are no run any more, and `_locked` removes them


def _write_parquet(path: Path, columns: dict[str, type], rows: Iterator[Row], notes: Row) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    types = {str: pa.string(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()], metadata={"lesion": json.dumps(notes)})
    with parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, ROW_GROUP_SIZE)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))

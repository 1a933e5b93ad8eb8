"""Archives: classify any number of images over all processes, one row per image; a killed run resumes.

Images are split into chunks; chunks are distributed over processes. A finished chunk is a file in `<output>.parts`, so
a kill costs at most one chunk a process, and the same command resumes, with any number of processes. The output merges
the chunks in the order of the images and is accompanied by `<output>.json` (provenance and counts). While rows have an
error, the chunks are kept, and the same command tries those rows again.
"""

import json
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
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
    in_words,
    is_dataset,
    list_files,
    needs,
    no_image,
    pinned,
)
from modeling.prediction import rounded
from modeling.rows import Row, columns_of, printable, row_of, write_rows

CHUNK_SIZE = 2 * BATCH_SIZE  # images: the cost of a kill for each process
ROW_GROUP_SIZE = 32 * CHUNK_SIZE  # rows of a Parquet file that are held in memory at once
WHOLE, WITH_ERRORS = ".json", ".errors.json"  # endings of a finished chunk


@dataclass(frozen=True)
class Processes:
    """The processes that share the work. Without a launcher there is one, and accelerate is not needed."""

    rank: int = 0
    count: int = 1
    device: str | None = None

    def wait(self) -> None:
        """Wait until all processes are here; if one fails, the launcher ends all."""
        if self.count > 1:
            from accelerate.utils import wait_for_everyone

            wait_for_everyone()


def join_processes() -> Processes:
    """Join the processes that `accelerate launch` started."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    from accelerate import Accelerator, InitProcessGroupKwargs

    # The others wait for the slowest at the end: with datasets of uneven files that may be hours.
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=30))])
    return Processes(accelerator.process_index, accelerator.num_processes, str(accelerator.device))


def classify_archive(
    classifier: LesionClassifier,
    inputs: Sequence[str],
    output: Path,
    *,
    processes: Processes,
    split: str | None = None,
    tta: bool = False,
    fetch_urls: bool = False,
) -> Row:
    """Classify all images of `inputs` and write one row for each; all processes call this.

    Args:
        classifier: The model.
        inputs: Files and folders, see `list_files`, or one dataset, see `StreamedDataset`.
        output: A new .csv or .parquet file, or that of the same run.
        processes: Of `join_processes`.
        split: Read the input as a dataset, and use this split.
        tta: Average over the eight flips and quarter turns.
        fetch_urls: Fetch images for which a dataset has nothing but a web address.

    Returns:
        `classified_now`, the number of images that this process classified in this run; and on the first process the
        content of `<output>.json`, with the numbers of rows: `images`, `unreadable` and `abstained`.

    Raises:
        ArchiveError: If the inputs cannot be read, the output cannot be written, or a library is missing.
    """
    if output.suffix not in (".csv", ".parquet"):
        raise ArchiveError(f"--output must end in .csv or .parquet, got {output.name!r:.300}.")
    if output.suffix == ".parquet":
        needs("pyarrow", "writing Parquet")
    columns = columns_of(classifier.codes, [point.name for point in classifier.operating_points])
    dataset, revision = None, None
    if is_dataset(inputs, split):
        name, revision = pinned(inputs[0], output.name)
        dataset = StreamedDataset(name, revision, split, fetch_urls=fetch_urls)
    run = {
        **classifier.provenance,
        "priors": {
            code: rounded(float(prior)) for code, prior in zip(classifier.codes, classifier.priors, strict=True)
        },
        "tta": tta,
        "inputs": [printable(given) for given in inputs],
        "folder": None if all(map(os.path.isabs, inputs)) else printable(os.getcwd()),  # of relative paths
        "split": split,
        "data_revision": revision,
    }
    parts, classified = _beside(output, ".parts"), 0
    try:
        with _locked(output, processes):
            if processes.rank == 0:
                _begin(run, () if dataset else inputs, output)
            processes.wait()
            if (parts / "run.json").exists():
                source = dataset or ListedFiles(parts / "files")
                classified = _classify_chunks(classifier, source, parts, processes, tta=tta)
                processes.wait()
                if processes.rank == 0:
                    _merge(source, output, columns, {"provenance": classifier.provenance, "notice": classifier.notice})
        state = read_json(_beside(output, ".json")) if processes.rank == 0 else {}
    except OSError as error:
        raise ArchiveError(
            f"{output} cannot be written ({error.strerror or error}). Make room, or choose another --output; finished "
            "work is kept, and the same command resumes."
        ) from error
    return {**state, "classified_now": classified}


# ---- beginning and resuming ----------------------------------------------------------------------------------------


def _beside(output: Path, ending: str) -> Path:
    return output.with_name(output.name + ending)


@contextmanager
def _locked(output: Path, processes: Processes) -> Iterator[None]:
    """Keep other runs away from this output; at the end, delete the parts unless they hold chunks to keep."""
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
        if not _is_begun(parts):
            shutil.rmtree(parts)
        lock.release()


def _is_begun(parts: Path) -> bool:
    """True if there are chunks of a run; without run.json they are left over from a run killed during cleanup."""
    return (parts / "run.json").exists() and any(parts.glob("*-*.json"))


def _begin(run: Row, files: Sequence[str], output: Path) -> None:
    """Prepare the parts of a new run, or check that what is here is whole and of this run."""
    parts, left_out = _beside(output, ".parts"), Counter[str]()
    if output.exists():
        advice = "Move it away, or choose another --output"
        state = _check_same(run, _beside(output, ".json"), f"{output} exists and is not of this run", advice)
        if file_sha256(output) != state.get("sha256"):
            raise ArchiveError(f"{output} was changed or damaged after its run. {advice}.")
    if _is_begun(parts):
        advice = f"Run the earlier command to complete it, or delete {parts} to start over"
        _check_same(run, parts / "run.json", f"{parts} holds unfinished work of another run", advice)
    elif not output.exists():
        for left in parts.glob("*-*.json"):
            left.unlink()
        if files:
            with (parts / "files").open("w", encoding="ascii") as listing:
                listing.writelines(json.dumps(path) + "\n" for path in list_files(files, left_out, output.name))
            if not (parts / "files").stat().st_size:
                raise no_image(files, left_out)
        _write_whole(parts / "run.json", json.dumps({"run": run, "left_out": in_words(left_out)}))


def _check_same(run: Row, path: Path, problem: str, advice: str) -> Row:
    """Return the content of a file beside the output; raise an ArchiveError unless it says that it is of this run."""
    try:
        content = read_json(path) if path.exists() else {}
    except ModelFolderError as error:
        raise ArchiveError(f"{error} {advice}.") from error
    before = content["run"] if isinstance(content.get("run"), dict) else {}
    different = [f"{key} was {before.get(key)!r} and is {run[key]!r}" for key in run if before.get(key) != run[key]]
    if different:
        raise ArchiveError(f"{problem}: {'; '.join(different)}. {advice}.")
    return content


def _write_whole(path: Path, text: str) -> None:
    """Write a file that is whole or not there, also after a power cut."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    flush(partial)
    partial.replace(path)


# ---- classifying ---------------------------------------------------------------------------------------------------


def _chunk(parts: Path, part: int, number: int) -> Path:
    return parts / f"{part:05d}-{number:07d}{WHOLE}"


def _read_chunk(path: Path) -> list[Row]:
    """Return the rows of a chunk; if it is damaged, delete it, so that the next run classifies its images again."""
    try:
        rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))
        return rows
    except (ValueError, FileNotFoundError) as error:
        path.unlink(missing_ok=True)
        raise ArchiveError(f"{path} was damaged; run the same command to classify its images again.") from error


def _classify_chunks(
    classifier: LesionClassifier, source: ListedFiles | StreamedDataset, parts: Path, processes: Processes, *, tta: bool
) -> int:
    """Classify what is missing in the chunks of this process; return the number of images."""
    present = {path.name for path in parts.glob(f"*-*{WHOLE}") if not path.name.endswith(WITH_ERRORS)}
    in_part = Counter(name.partition("-")[0] for name in present)
    by_part = source.num_parts >= processes.count  # else each process reads all parts, and takes its chunks of them
    pending: deque[tuple[Path, list[tuple[str, Row]]]] = deque()  # with earlier rows, or empty ones

    def is_whole(part: int) -> bool:
        """True if the last chunk of a part is there, the only one that is not full."""
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
                    earlier = path.with_suffix(WITH_ERRORS)
                    rows = _read_chunk(earlier) if earlier.exists() else [Row()] * len(chunk)
                    pending.append((path, [(name, row) for (name, _), row in zip(chunk, rows, strict=True)]))
                    for (_, image), row in zip(chunk, rows, strict=True):
                        yield image if not row or "error" in row else None
                    yield from [None] * missing  # so that batches are those of a run without a kill
                if missing:
                    break

    done = 0
    answers = classifier.predict_each(images(), tta=tta)
    left = None if source.total is None else max(0, source.total - len(present) * CHUNK_SIZE) // processes.count
    with tqdm(total=left, unit=" images", disable=processes.rank != 0, mininterval=1.0) as progress:
        while results := list(islice(answers, CHUNK_SIZE)):
            path, items = pending.popleft()
            rows = [
                row if answer is None else row_of(answer, name)
                for (name, row), answer in zip(items, results, strict=False)
            ]
            with_errors = any("error" in row for row in rows)
            _write_whole(path.with_suffix(WITH_ERRORS) if with_errors else path, json.dumps(rows))
            if not with_errors:
                path.with_suffix(WITH_ERRORS).unlink(missing_ok=True)
            progress.update(len(rows))
            done += sum(answer is not None for answer in results)
    return done


def _merge(source: ListedFiles | StreamedDataset, output: Path, columns: dict[str, type], notes: Row) -> None:
    """Write all chunks into the output, in order, and `<output>.json`; without errors, the chunks may then go."""
    parts, counts = _beside(output, ".parts"), Counter(images=0, unreadable=0, abstained=0)

    def rows() -> Iterator[Row]:
        for part in range(source.num_parts):
            for number in count():
                path = _chunk(parts, part, number)
                chunk = _read_chunk(path if path.exists() else path.with_suffix(WITH_ERRORS))
                for row in chunk:
                    counts.update(images=1, unreadable="error" in row, abstained=row.get("abstained", False))
                    yield row
                if len(chunk) < CHUNK_SIZE:
                    break

    merged, run = parts / f"merged{output.suffix}", read_json(parts / "run.json")
    if output.suffix == ".csv":
        write_rows(merged, rows(), columns)
    else:
        _write_parquet(merged, columns, rows(), notes)
    flush(merged)
    if counts["images"]:
        state = {**run, **notes, **counts, "columns": list(columns), "sha256": file_sha256(merged)}
        write_json(parts / "state.json", state)
        # A kill between these steps leaves no output, and the same command merges again.
        output.unlink(missing_ok=True)
        (parts / "state.json").replace(_beside(output, ".json"))
        merged.replace(output)
    if not counts["unreadable"]:
        (parts / "run.json").unlink()  # without it, `_locked` deletes the parts
    if not counts["images"]:
        raise no_image(run["run"]["inputs"], Counter())


def _write_parquet(path: Path, columns: dict[str, type], rows: Iterator[Row], notes: Row) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    types = {str: pa.string(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()], metadata={"lesion": json.dumps(notes)})
    with parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, ROW_GROUP_SIZE)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))

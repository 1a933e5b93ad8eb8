"""Archives: classify any number of images over all processes, one row per image; a killed run resumes.

Images are split into chunks, which the processes take in turn. A finished chunk is a file in `<output>.parts`, so a kill
costs at most one chunk a process, and the same command resumes, with any number of processes. The output merges the chunks
in the order of the images and is accompanied by `<output>.json` (provenance and counts). While rows have an error, the
chunks are kept, and the same command tries those rows again.
"""

import json
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from modeling.classifier import LesionClassifier
from modeling.engines import BATCH_SIZE
from modeling.files import ModelFolderError, file_sha256, flush, read_json
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
)
from modeling.prediction import rounded
from modeling.rows import Row, columns_of, printable, row_of, write_rows

CHUNK_SIZE = 2 * BATCH_SIZE  # images: the cost of a kill for each process
ROW_GROUP_SIZE = 32 * CHUNK_SIZE  # rows of a Parquet file that are held in memory at once


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

    # The others wait for the slowest at the end, which on uneven machines may be hours.
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
    dataset = StreamedDataset(inputs[0], split, fetch_urls=fetch_urls) if is_dataset(inputs, split) else None
    run = {
        **classifier.provenance,
        "priors": {
            code: rounded(float(prior)) for code, prior in zip(classifier.codes, classifier.priors, strict=True)
        },
        "tta": tta,
        "inputs": [printable(given) for given in inputs],
        "folder": None if all(map(os.path.isabs, inputs)) else printable(os.getcwd()),  # of relative paths
        "split": split,
        "data_revision": dataset.revision if dataset else None,
    }
    classified = 0
    try:
        with _locked(output) if processes.rank == 0 else nullcontext():
            if processes.rank == 0:
                _begin(run, () if dataset else inputs, output)
            processes.wait()
            if not _is_complete(output):
                source = dataset or ListedFiles(_beside(output, ".parts") / "files")
                classified = _classify_chunks(classifier, source, output, processes, tta=tta)
                processes.wait()
                if processes.rank == 0:
                    _merge(output, columns, {"provenance": classifier.provenance, "notice": classifier.notice})
            state = read_json(_beside(output, ".json")) if processes.rank == 0 else {}
            if state.get("unreadable") == 0:
                for path in _chunks(output):
                    path.unlink()
    except OSError as error:
        raise ArchiveError(
            f"{output} cannot be written ({error.strerror or error}). Make room, or choose another --output; finished "
            "work is kept, and the same command resumes."
        ) from error
    return {**state, "classified_now": classified}


# ---- beginning and resuming ----------------------------------------------------------------------------------------


def _beside(output: Path, ending: str) -> Path:
    return output.with_name(output.name + ending)


def _chunks(output: Path) -> list[Path]:
    return sorted(_beside(output, ".parts").glob("*.json"))


def _is_complete(output: Path) -> bool:
    return output.exists() and read_json(_beside(output, ".json")).get("unreadable") == 0


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Keep other runs away from this output; at the end, delete the parts unless they hold chunks to keep."""
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
        if not _chunks(output):
            shutil.rmtree(parts)
        lock.release()


def _begin(run: Row, files: Sequence[str], output: Path) -> None:
    """Note what a new run is, or check that what is here is whole and of this run."""
    parts, left_out = _beside(output, ".parts"), Counter[str]()
    if output.exists() or _chunks(output):
        advice = f"Choose another --output, or move {output} away and delete {parts} to start over"
        notes = _beside(output, ".json") if output.exists() else parts / "run"
        try:
            state = read_json(notes) if notes.exists() else {}
        except ModelFolderError as error:
            raise ArchiveError(f"{error} {advice}.") from error
        before = state["run"] if isinstance(state.get("run"), dict) else {}
        different = [f"{key} was {before.get(key)!r} and is {run[key]!r}" for key in run if before.get(key) != run[key]]
        if different:
            raise ArchiveError(
                f"{output} exists, or has unfinished work, of another run: {'; '.join(different)}. {advice}."
            )
        if output.exists() and file_sha256(output) != state.get("sha256"):
            raise ArchiveError(f"{output} was changed or damaged after its run. {advice}.")
    else:
        with (parts / "files").open("w", encoding="ascii") as listing:
            listing.writelines(json.dumps(path) + "\n" for path in list_files(files, left_out, output.name))
        _write_whole(parts / "run", {"run": run, "left_out": in_words(left_out)})


def _write_whole(path: Path, content: Any) -> None:
    """Write a JSON file that is whole or not there, also after a power cut."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    flush(partial)
    partial.replace(path)


# ---- classifying ---------------------------------------------------------------------------------------------------


def _read_chunk(path: Path) -> list[Row]:
    """Return the rows of a chunk; if it is damaged, delete it, so that the next run classifies its images again."""
    try:
        rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))
        return rows
    except ValueError as error:
        path.unlink()
        raise ArchiveError(f"{path} was damaged; run the same command to classify its images again.") from error


def _classify_chunks(
    classifier: LesionClassifier,
    source: ListedFiles | StreamedDataset,
    output: Path,
    processes: Processes,
    *,
    tta: bool,
) -> int:
    """Classify what is missing, or has an error, in the chunks of this process; return the number of images."""
    pending: deque[tuple[Path, list[str], list[Row]]] = deque()  # with earlier rows, or empty ones

    def images() -> Iterator[ImageInput | Callable[[], ImageInput] | None]:
        items = iter(tqdm(source.items(), total=source.total, unit=" images", disable=processes.rank != 0))
        for number, chunk in enumerate(iter(lambda: list(islice(items, CHUNK_SIZE)), [])):
            path = _beside(output, ".parts") / f"{number:07d}.json"
            if number % processes.count != processes.rank:
                continue
            rows = _read_chunk(path) if path.exists() else [Row()] * len(chunk)
            if any(not row or "error" in row for row in rows):
                pending.append((path, [name for name, _ in chunk], rows))
                for (_, image), row in zip(chunk, rows, strict=True):  # None, so that batches are those of a first run
                    yield image if not row or "error" in row else None

    done = 0
    answers = classifier.predict_each(images(), tta=tta)
    while results := list(islice(answers, CHUNK_SIZE)):
        path, names, rows = pending.popleft()
        answered = zip(names, rows, results, strict=True)
        _write_whole(path, [row if answer is None else row_of(answer, name) for name, row, answer in answered])
        done += sum(answer is not None for answer in results)
    return done


def _merge(output: Path, columns: dict[str, type], notes: Row) -> None:
    """Write all chunks into the output, in order, and `<output>.json`."""
    counts, state = Counter(images=0, unreadable=0, abstained=0), read_json(_beside(output, ".parts") / "run")

    def rows() -> Iterator[Row]:
        for path in _chunks(output):
            for row in _read_chunk(path):
                counts.update(images=1, unreadable="error" in row, abstained=row.get("abstained", False))
                yield row

    merged = _beside(output, ".parts") / f"merged{output.suffix}"
    if output.suffix == ".csv":
        write_rows(merged, rows(), columns)
    else:
        _write_parquet(merged, columns, rows(), notes)
    if not counts["images"]:
        raise no_image(state["run"]["inputs"], state["left_out"])
    flush(merged)
    # A kill between these steps leaves no output, and the same command merges again.
    output.unlink(missing_ok=True)
    _write_whole(
        _beside(output, ".json"), {**state, **notes, **counts, "columns": list(columns), "sha256": file_sha256(merged)}
    )
    merged.replace(output)


def _write_parquet(path: Path, columns: dict[str, type], rows: Iterator[Row], notes: Row) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    types = {str: pa.string(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()], metadata={"lesion": json.dumps(notes)})
    with parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, ROW_GROUP_SIZE)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))

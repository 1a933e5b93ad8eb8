"""Classify any number of images over all processes: streamed, resumable, one row per image.

accelerate launch -m modeling.predictor MODEL DIR_OR_DATASET --output out.parquet

The images are counted off in chunks, and the chunks dealt out to the processes. A finished chunk is written beside the
output and renamed when whole; so a killed run loses at most one chunk a process, and the same command goes on from
there, with any number of processes. When all chunks are there, they are merged in the order of the images.
"""

import csv
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from modeling.classifier import BATCH_SIZE, LesionClassifier, map_ahead
from modeling.files import write_json
from modeling.images import MAX_FILE_BYTES, ImageError, ImageInput
from modeling.labels import diagnosis_of
from modeling.prediction import Prediction

CHUNK_SIZE = 2 * BATCH_SIZE  # images; what a kill can cost each process
ROW_GROUP_SIZE = 32 * CHUNK_SIZE  # rows of a Parquet file that are held in memory at once
FORMATS = (".csv", ".parquet")
# Columns by which datasets name their images.
NAME_COLUMNS = ("image_id", "isic_id", "file_name", "filename", "id")
FETCH_ATTEMPTS = 4

logger = logging.getLogger(__name__)


class ArchiveError(RuntimeError):
    """The images cannot be classified, with the reason and what to do."""


@dataclass(frozen=True)
class Summary:
    """What came out: number of images, of those that could not be read, and of those abstained on; and how fast."""

    images: int
    unreadable: int
    abstained: int
    classified_now: int
    processes: int
    seconds: float

    def __str__(self) -> str:
        """Say it in a sentence."""
        now = "complete already"
        if self.classified_now:
            rate = self.classified_now / self.seconds
            now = f"{self.classified_now} of them now by process 1 of {self.processes}, {rate:.1f} a second"
        return (
            f"{self.images} images, one row each ({now}); {self.unreadable} could not be read (column error), "
            f"{self.abstained} abstained on."
        )


@dataclass(frozen=True)
class Processes:
    """The processes that share the work. Without a launcher there is one, and accelerate is not needed."""

    rank: int
    count: int
    local_count: int
    device: str | None

    def wait(self) -> None:
        """Wait for all others to come here."""
        if self.count > 1:
            from accelerate.utils import wait_for_everyone

            wait_for_everyone()

    def agree(self, error: str | None) -> None:
        """Raise on all processes what went wrong on the first.

        Raises:
            ArchiveError: If `error` of the first process is not None.
        """
        if self.count > 1:
            from accelerate.utils import broadcast_object_list

            (error,) = broadcast_object_list([error])
        if error is not None:
            raise ArchiveError(error)


def join_processes() -> Processes:
    """Join the processes that `accelerate launch` started."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes(rank=0, count=1, local_count=1, device=None)
    from accelerate import Accelerator, InitProcessGroupKwargs

    # The others wait for the slowest at the end: with datasets of uneven files that may be hours.
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=30))])
    count = accelerator.num_processes
    local_count = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    return Processes(accelerator.process_index, count, local_count, str(accelerator.device))


def classify_archive(
    classifier: LesionClassifier,
    inputs: Sequence[str],
    output: Path,
    *,
    processes: Processes,
    split: str | None = None,
    tta: bool = False,
) -> Summary:
    """Classify all images of `inputs` and write one row for each; all processes call this.

    Args:
        classifier: The model.
        inputs: Files and folders (all files at any depth, see `list_files`), or
            one dataset, see `open_source`.
        output: A new .csv or .parquet file. Beside it, `<output>.json` holds provenance and counts, and
            `<output>.parts` unfinished work.
        processes: Of `join_processes`.
        split: Read the input as a dataset, and take this split.
        tta: Average over the eight flips and quarter turns.

    Returns:
        The summary of the whole; on processes other than the first, only `classified_now` and `seconds` count.

    Raises:
        ArchiveError: If the output exists or belongs to another model, an input cannot be opened, or a library is missing.
    """
    start = time.monotonic()
    parts = output.with_name(f"{output.name}.parts")
    error, finished = None, None
    with ExitStack() as held:
        if processes.rank == 0:
            try:
                held.enter_context(_locked(parts))
                finished = _prepare(classifier, inputs, output, parts, split=split, tta=tta)
            except ArchiveError as reason:
                error = str(reason)
        processes.agree(error)
        if finished is not None or not parts.exists():  # complete already
            return finished or Summary(0, 0, 0, 0, processes.count, 0.0)
        source = _open_prepared(inputs, parts, split)
        classified = _classify_chunks(classifier, source, parts, processes, tta=tta)
        processes.wait()
        counts = _merge(classifier, source, parts, output) if processes.rank == 0 else (0, 0, 0)
        return Summary(*counts, classified, processes.count, time.monotonic() - start)


def answer_few(classifier: LesionClassifier, inputs: Sequence[str], *, split: str | None, tta: bool, most: int) -> str:
    """Return a table for people of the answers about at most `most` images.

    Raises:
        ArchiveError: If there are more, or an input cannot be opened.
    """
    if _is_dataset(inputs, split):
        name, commit = _hub_commit(inputs[0])
        source = open_dataset(name, split, commit)
        images = (image for part in range(source.num_parts) for image in source.read(part))
    else:
        images = ((path, path) for path in list_files(inputs))
    few = list(islice(images, most + 1))
    if len(few) > most:
        raise ArchiveError(f"there are more than {most} images: add --output FILE.csv or FILE.parquet.")
    return table(classify_each(classifier, few, tta=tta))


# ---- where images come from ----------------------------------------------------------------------------------------

NamedImage = tuple[str, ImageInput | None]


class Source(Protocol):
    """Images in a fixed order, in one or several parts that can be read apart."""

    @property
    def num_parts(self) -> int: ...
    @property
    def total(self) -> int | None: ...
    def read(self, part: int) -> Iterator[NamedImage]:
        """Yield name and image of each, in order; pixels are not decoded yet."""
        ...


@dataclass(frozen=True)
class ListedFiles:
    """The files of a listing on disk: memory stays flat, and a resumed run meets the same images in the same order."""

    listing: Path
    total: int | None
    num_parts: int = 1

    def read(self, part: int) -> Iterator[NamedImage]:
        with self.listing.open(encoding="ascii") as file:
            for line in file:
                path = json.loads(line)
                yield path, path


class StreamedDataset:
    """One split of a dataset, streamed; its parts are its data files."""

    def __init__(self, dataset: Any, split: str) -> None:
        """Take a `datasets.IterableDataset`.

        Raises:
            ArchiveError: If it does not have one image column.
        """
        import datasets

        if dataset.features is None:
            dataset = dataset._resolve_features()
        images = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
        if len(images) != 1 and "image" not in images:
            raise ArchiveError(
                f"the dataset has {len(images)} image columns among {', '.join(dataset.features)}; one, of type "
                "datasets.Image, is needed, or one of them named 'image'."
            )
        self.column = "image" if "image" in images else images[0]
        self.name_column = next((name for name in NAME_COLUMNS if name in dataset.features), None)
        columns = [self.column, *([self.name_column] if self.name_column else [])]
        # Undecoded: a damaged image must become a row, not the end of the stream.
        self.dataset = dataset.select_columns(columns).cast_column(self.column, datasets.Image(decode=False))
        self.split = split
        self.num_parts = dataset.num_shards
        known = dataset.info.splits.get(split) if dataset.info.splits else None
        self.total = known.num_examples or None if known else None

    def read(self, part: int) -> Iterator[NamedImage]:
        for index, row in enumerate(self.dataset.shard(num_shards=self.num_parts, index=part)):
            image = row[self.column] or {}
            name = row[self.name_column] if self.name_column else image.get("path")
            yield (
                str(name) if name not in (None, "") else f"{self.split}-{part:05d}-{index:07d}",
                image.get("bytes") or image.get("path"),
            )


def open_dataset(name: str, split: str | None, revision: str | None) -> StreamedDataset:
    """Open one dataset as a stream.

    Args:
        name: What `datasets.load_dataset` takes: a Hub id such as "user/name", a folder, or a Parquet file.
        split: Such as "test"; may be left out if there is only one.
        revision: Commit on the Hub.

    Raises:
        ArchiveError: If it cannot be opened, or the split must be chosen.
    """
    datasets = _needs("datasets", "reading a dataset")
    try:
        if name.endswith(".parquet"):
            loaded = datasets.load_dataset("parquet", data_files=[name], streaming=True)
        else:
            loaded = datasets.load_dataset(name, revision=revision, streaming=True)
    # DatasetNotFoundError is an OSError; wrong names and layouts are ValueErrors; a lost network is an OSError.
    except (OSError, ValueError, RuntimeError) as error:
        raise ArchiveError(
            f"{name!r} is no file or folder here, and no dataset that can be opened ({type(error).__name__}: {error})."
        ) from error
    splits = list(loaded)
    if split is None and len(splits) == 1:
        split = splits[0]
    if split is None or split not in splits:
        chosen = f"has no split {split!r}" if split else "has several splits"
        raise ArchiveError(f"{name} {chosen}; choose one of {', '.join(splits)} with --split.")
    return StreamedDataset(loaded[split], split)


def list_files(inputs: Iterable[str], *, leave_out: Path | None = None) -> Iterator[str]:
    """Yield the path of every file: the inputs in their order, folders searched in the order of names.

    An input that is named twice, or lies in another one, counts once. Left out are hidden folders, links to folders
    (which may form a loop), both with a warning, and what belongs to the output `leave_out`.

    Raises:
        ArchiveError: If an input does not exist or a folder cannot be read.
    """
    given = list(dict.fromkeys(inputs))
    real = {name: Path(name).resolve() for name in given}
    folders = {path for name, path in real.items() if os.path.isdir(name)}
    seen: set[Path] = set()
    for name in given:
        path = real[name]
        if path in seen or not folders.isdisjoint(path.parents):
            continue
        seen.add(path)
        if path in folders:
            yield from _files_below(name, leave_out)
        elif os.path.lexists(name):
            yield name
        else:
            raise ArchiveError(f"{name!r} does not exist; check the path.")


def _files_below(top: str, leave_out: Path | None) -> Iterator[str]:
    own_names = {f"{leave_out.name}{end}" for end in ("", ".json", ".parts", ".lock")} if leave_out else set()
    own_folder = leave_out.parent.resolve() if leave_out else None
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            raise ArchiveError(f"the folder {folder!r} cannot be read ({error.strerror}); check its rights.") from error
        if own_folder is not None and Path(folder).resolve() == own_folder:
            names = [name for name in names if name not in own_names]
        below = []
        for name in names:
            path = os.path.join(folder, name)
            if not os.path.isdir(path):
                yield path
            elif os.path.islink(path) or name.startswith("."):
                logger.warning("%r is a hidden folder or a link to one, and is left out.", path)
            else:
                below.append(path)
        waiting += reversed(below)


def _is_dataset(inputs: Sequence[str], split: str | None) -> bool:
    """Tell a dataset from files and folders: a split is asked for, a Parquet file, or a name that is not here."""
    if len(inputs) != 1:
        if split is not None:
            raise ArchiveError("--split is for one dataset; leave it out to classify files and folders.")
        return False
    return split is not None or inputs[0].endswith(".parquet") or (not os.path.lexists(inputs[0]))


def _hub_commit(name: str) -> tuple[str, str | None]:
    """Split "user/name@revision"; return the name, and its commit so that a resumed run reads the same data."""
    name, _, revision = name.partition("@")
    if os.path.lexists(name):
        return name, None
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        return name, HfApi().dataset_info(name, revision=revision or None, timeout=15).sha
    except HFValidationError as error:
        raise ArchiveError(
            f"{name!r} does not exist, and is no Hub dataset id such as 'user/name'; check it."
        ) from error
    except (httpx.HTTPError, OSError) as error:
        raise ArchiveError(
            f"{name!r} is no file or folder here, and the Hub did not give a dataset of that name ({error})."
        ) from error


# ---- resuming ------------------------------------------------------------------------------------------------------


@contextmanager
def _locked(parts: Path) -> Iterator[None]:
    """Keep a second run away from the same output. The lock ends with the process, also when it is killed."""
    from filelock import FileLock, Timeout

    parts.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(parts.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ArchiveError(f"another run is writing {parts}; wait for it, or choose another --output.") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _prepare(
    classifier: LesionClassifier, inputs: Sequence[str], output: Path, parts: Path, *, split: str | None, tta: bool
) -> Summary | None:
    """Make the folder of parts, or check that it belongs to this run; return a summary if all is done already."""
    if output.suffix not in FORMATS:
        raise ArchiveError(f"--output must end in {' or '.join(FORMATS)}, got {output.name!r}.")
    if output.suffix == ".parquet":
        _needs("pyarrow", "writing Parquet")
    _columns(classifier)
    is_dataset = _is_dataset(inputs, split)
    commit = _hub_commit(inputs[0])[1] if is_dataset else None
    run = {
        **{key: value for key, value in classifier.provenance.items() if key != "data_fingerprint"},
        "tta": tta,
        "inputs": [_printable(name) for name in inputs],
        "folder": None if commit or all(map(os.path.isabs, inputs)) else _printable(os.getcwd()),
        "split": split,
        "data_revision": commit,
        "chunk_size": CHUNK_SIZE,
    }
    beside = output.with_name(f"{output.name}.json")
    if output.exists():
        summary = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
        if summary.get("run") != run:
            raise ArchiveError(f"{output} exists and is not of this run; delete it or choose another --output.")
        shutil.rmtree(parts, ignore_errors=True)
        return Summary(summary["images"], summary["unreadable"], summary["abstained"], 0, 1, 0.0)
    if (parts / "run.json").exists():
        before = json.loads((parts / "run.json").read_text(encoding="utf-8"))
        different = [f"{key} was {before.get(key)!r} and is {run[key]!r}" for key in run if before.get(key) != run[key]]
        if different:
            raise ArchiveError(
                f"{parts} holds unfinished work of another run: {'; '.join(different)}. Run the earlier command to "
                "complete it, delete the folder to start anew, or choose another --output."
            )
        return None
    parts.mkdir(exist_ok=True)
    if not is_dataset:
        total = 0
        with (parts / "images.jsonl").open("w", encoding="ascii") as file:
            for path in list_files(inputs, leave_out=output):
                file.write(json.dumps(path) + "\n")
                total += 1
        if total == 0:
            shutil.rmtree(parts)
            raise ArchiveError(f"there is no file in {', '.join(map(repr, inputs))}.")
        _write_whole(_end(parts, 0), json.dumps({"rows": total}))
    _write_whole(parts / "run.json", json.dumps(run, indent=2))
    return None


def _open_prepared(inputs: Sequence[str], parts: Path, split: str | None) -> Source:
    if (parts / "images.jsonl").exists():
        return ListedFiles(parts / "images.jsonl", total=_rows_of(parts, 0))
    run = json.loads((parts / "run.json").read_text(encoding="utf-8"))
    return open_dataset(inputs[0].partition("@")[0] if run["data_revision"] else inputs[0], split, run["data_revision"])


def _flush(path: Path) -> None:
    """Wait until a written file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _chunk(parts: Path, part: int, chunk: int) -> Path:
    return parts / f"{part:05d}-{chunk:07d}.jsonl"


def _end(parts: Path, part: int) -> Path:
    return parts / f"{part:05d}.end"


def _rows_of(parts: Path, part: int) -> int | None:
    """Return the number of images of a part; None before it has been read to its end."""
    end = _end(parts, part)
    return json.loads(end.read_text())["rows"] if end.exists() else None


def _chunks_in(rows: int) -> int:
    return -(-rows // CHUNK_SIZE)


def _write_whole(path: Path, text: str) -> None:
    """Write a file that is whole or not there, also after a power cut."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    _flush(partial)
    partial.replace(path)


# ---- classifying ---------------------------------------------------------------------------------------------------


def classify_each(
    classifier: LesionClassifier, images: Iterable[NamedImage], *, tta: bool = False, threads: int | None = None
) -> Iterator[tuple[str, Prediction | str]]:
    """Yield name and prediction of each image in order, or in words why it cannot be read; memory stays flat.

    Args:
        classifier: The model.
        images: Read only a few batches ahead; an image is None where a dataset has none.
        tta: Average over the eight flips and quarter turns.
        threads: That decode while the network computes; as many as there are cores if None.
    """

    def preprocess(item: NamedImage) -> tuple[str, np.ndarray | str]:
        name, image = item
        if image is None:
            return name, "the dataset has no image in this row"
        try:
            return name, classifier.preprocess(_fetch(image))
        except ImageError as error:
            return name, str(error)

    def answer(waiting: list[tuple[str, np.ndarray | str]]) -> Iterator[tuple[str, Prediction | str]]:
        tensors = [tensor for _, tensor in waiting if isinstance(tensor, np.ndarray)]
        predictions: Iterator[Prediction] = iter(())
        if tensors:
            batch = np.stack(tensors)  # (B, 3, S, S)
            predictions = iter(classifier.predictions(classifier.forward(batch), batch if tta else None))
        for name, result in waiting:
            yield name, result if isinstance(result, str) else next(predictions)

    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        waiting: list[tuple[str, np.ndarray | str]] = []
        for result in map_ahead(pool, preprocess, images, ahead=2 * classifier.batch_size):
            waiting.append(result)
            if len(waiting) == classifier.batch_size:
                yield from answer(waiting)
                waiting = []
        yield from answer(waiting)


def _fetch(image: ImageInput) -> ImageInput:
    """Return the bytes of an image that lies elsewhere ("hf://…"); others as they are.

    Raises:
        ImageError: If it is not there.
        ArchiveError: If it could not be fetched; the run stops, since the network's fault is not the image's.
    """
    if not isinstance(image, str) or "://" not in image or os.path.lexists(image):
        return image
    import fsspec

    for attempt in range(1, FETCH_ATTEMPTS + 1):
        try:
            with fsspec.open(image, "rb") as file:
                return file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError as error:
            raise ImageError(f"{image!r} is not there.") from error
        except (OSError, RuntimeError) as error:
            if attempt == FETCH_ATTEMPTS:
                raise ArchiveError(
                    f"{image!r} could not be fetched ({error}); run the same command again to go on."
                ) from error
            time.sleep(2.0**attempt)
    raise AssertionError("unreachable")


def _classify_chunks(
    classifier: LesionClassifier, source: Source, parts: Path, processes: Processes, *, tta: bool
) -> int:
    """Classify the chunks that fall to this process and are not there yet; return the number of images."""
    present = {name for name in os.listdir(parts) if name.endswith(".jsonl")}
    places: list[tuple[Path, int]] = []  # chunk and number of rows still to come, in the order of reading
    whole_parts = source.num_parts >= processes.count

    def mine() -> Iterator[NamedImage]:
        for part in range(source.num_parts):
            if whole_parts and part % processes.count != processes.rank:
                continue
            rows = _rows_of(parts, part)
            if rows is not None and all(_chunk(parts, part, n).name in present for n in range(_chunks_in(rows))):
                continue
            count = 0
            images = source.read(part)
            while batch := list(islice(images, CHUNK_SIZE)):
                number = count // CHUNK_SIZE
                count += len(batch)
                path = _chunk(parts, part, number)
                if path.name not in present and (whole_parts or (part + number) % processes.count == processes.rank):
                    places.append((path, len(batch)))
                    yield from batch
            _write_whole(_end(parts, part), json.dumps({"rows": count}))

    done = 0
    rows: list[str] = []
    threads = max(1, (os.cpu_count() or 1) // processes.local_count)
    total = None if source.total is None else max(0, source.total - len(present - {"images.jsonl"}) * CHUNK_SIZE)
    with tqdm(
        total=None if total is None else -(-total // processes.count),
        unit=" images",
        desc=f"process 1 of {processes.count}" if processes.count > 1 else None,
        disable=processes.rank != 0,
        mininterval=1.0,
    ) as progress:
        for name, result in classify_each(classifier, mine(), tta=tta, threads=threads):
            rows.append(json.dumps(row_of(name, result)))
            done += 1
            progress.update()
            path, wanted = places[0]
            if len(rows) == wanted:
                _write_whole(path, "\n".join(rows) + "\n")
                places.pop(0)
                rows = []
    return done


# ---- rows ----------------------------------------------------------------------------------------------------------


def row_of(name: str, result: Prediction | str) -> dict[str, Any]:
    """Return one row: what the model says of an image, or why it says nothing."""
    row: dict[str, Any] = {"image": _printable(name)}
    if isinstance(result, str):
        return {**row, "error": result}
    return {
        **row,
        "diagnosis": result.diagnosis,
        "probability": result.probability,
        **result.probabilities,
        "abstained": result.abstained,
        "reason": result.reason,
        **result.operating_points,
    }


def _columns(classifier: LesionClassifier) -> dict[str, type]:
    """Return the columns of the output, in order, with their types."""
    columns = [
        ("image", str),
        ("diagnosis", str),
        ("probability", float),
        *((code, float) for code in classifier.codes),
        ("abstained", bool),
        ("reason", str),
        *((point.name, bool) for point in classifier.operating_points),
        ("error", str),
    ]
    names = [name for name, _ in columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ArchiveError(
            f"the model has a diagnosis named {', '.join(twice)}, like a column of the output; rename it."
        )
    return dict(columns)


def _printable(name: str) -> str:
    r"""Return a file name as valid text: bytes that are no UTF-8 are written as \xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _merge(classifier: LesionClassifier, source: Source, parts: Path, output: Path) -> tuple[int, int, int]:
    """Write all chunks into the output, in order; return the numbers of images, unreadable and abstained ones."""
    images = unreadable = abstained = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal images, unreadable, abstained
        for part in range(source.num_parts):
            expected = _rows_of(parts, part)
            found = 0
            for number in range(_chunks_in(expected or 0)):
                with _chunk(parts, part, number).open(encoding="utf-8") as file:
                    for line in file:
                        row = json.loads(line)
                        found += 1
                        unreadable += "error" in row
                        abstained += row.get("abstained", False)
                        yield row
            if found != expected:
                raise ArchiveError(
                    f"{parts}: part {part} has {found} rows of {expected}; delete the folder, start anew."
                )
            images += found

    columns = _columns(classifier)
    partial = parts / f"merged{output.suffix}"
    notes = {"provenance": classifier.provenance, "notice": classifier.notice}
    if output.suffix == ".csv":
        # Lines end in CR LF, as the format has it: then names with either character in them are quoted.
        with partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(columns), restval="")
            writer.writeheader()
            writer.writerows(rows())
    else:
        _write_parquet(partial, columns, rows(), notes)
    _flush(partial)
    summary = {
        "run": json.loads((parts / "run.json").read_text(encoding="utf-8")),
        **notes,
        "images": images,
        "unreadable": unreadable,
        "abstained": abstained,
        "columns": list(columns),
    }
    write_json(parts / "summary.json", summary)
    (parts / "summary.json").replace(output.with_name(f"{output.name}.json"))
    partial.replace(output)
    shutil.rmtree(parts)
    return images, unreadable, abstained


def _write_parquet(path: Path, columns: dict[str, type], rows: Iterator[dict[str, Any]], notes: dict) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    types = {str: pa.string(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()], metadata={"lesion": json.dumps(notes)})
    with parquet.ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, ROW_GROUP_SIZE)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def table(results: Iterable[tuple[str, Prediction | str]]) -> str:
    """Return a table for people; control characters in file names are written out, since terminals obey them."""
    lines = [("image", "diagnosis", "probability", "above the threshold of")]
    notes = []
    for name, result in results:
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in _printable(name))
        if isinstance(result, str):
            lines.append((shown, "-", "", "not read: see below"))
            notes.append(f"{shown}: {result}")
            continue
        reached = ", ".join(point for point, above in result.operating_points.items() if above)
        diagnosis = f"{result.diagnosis} ({diagnosis_of(result.diagnosis).name})"
        lines.append(
            (shown, diagnosis, f"{result.probability:.1%}", "abstained: see below" if result.abstained else reached)
        )
        if result.abstained:
            notes.append(f"{shown}: {result.reason}")
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    rows = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[3]]) for line in lines
    ]
    return "\n".join([*(row.rstrip() for row in rows), *notes])


def _needs(module: str, what: str) -> Any:
    """Import a library of the extra `train`.

    Raises:
        ArchiveError: If it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ArchiveError(
            f'{what} needs {module}, which is not installed: pip install "skin-lesion-classifier[train]"; '
            "CSV output from files and folders works without."
        ) from error

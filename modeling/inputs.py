"""What is to be classified: the files of folders, listed in a fixed order, or the rows of a dataset, streamed."""

import hashlib
import heapq
import importlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from modeling.images import MAX_FILE_BYTES, ImageError, ImageInput

# Columns by which datasets name their images.
NAME_COLUMNS = ("image_id", "isic_id", "file_name", "filename", "id")
GO_ON = "; run the same command again to go on"

logger = logging.getLogger(__name__)
_Kept = TypeVar("_Kept")


class ArchiveError(RuntimeError):
    """The images cannot be classified, with the reason and what to do."""


class File(NamedTuple):
    """A listed file: which input it is of, its path, and what tells that it was changed."""

    given: int
    path: str
    size_bytes: int | None
    time_ns: int | None


def list_files(inputs: Iterable[str], *, leave_out: Iterable[Path] = (), missing_ok: bool = False) -> Iterator[File]:
    """Yield every file: the inputs in their order; of a folder first its files, then its folders, by name.

    An input that is named twice, or lies in another one, counts once. Left out are hidden folders and links to folders
    (which may form a loop), both with a warning, and the paths `leave_out`.

    Raises:
        ArchiveError: If an input does not exist (unless `missing_ok`) or a folder cannot be read.
    """
    real = {name: Path(name).resolve() for name in inputs}
    folders = {path for name, path in real.items() if os.path.isdir(name)}
    seen = {path.resolve() for path in leave_out}
    for given, (name, path) in enumerate(real.items()):
        if path in seen or not folders.isdisjoint(path.parents):
            continue
        if not os.path.lexists(name):
            if missing_ok:
                continue
            raise ArchiveError(f"{name!r:.300} does not exist; check the path.")
        for found in _files_below(name, seen) if path in folders else [name]:
            try:
                stat = os.stat(found)
                yield File(given, found, stat.st_size, stat.st_mtime_ns)
            except OSError:  # a link to nowhere, which becomes a row with that error
                yield File(given, found, None, None)
        seen.add(path)


def _files_below(top: str, leave_out: set[Path]) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise ArchiveError(f"the folder {error.filename!r} cannot be read ({error.strerror}); check its rights.")

    for folder, below, names in os.walk(top, onerror=refuse):
        here = Path(folder).resolve()
        own = {path.name for path in leave_out if path.parent == here}
        entered = []
        for name in sorted(set(below) - own):
            if name.startswith(".") or os.path.islink(os.path.join(folder, name)):
                logger.warning("%r is a hidden folder or a link to one, and is left out.", os.path.join(folder, name))
            else:
                entered.append(name)
        below[:] = entered
        yield from (os.path.join(folder, name) for name in sorted(names) if name not in own)


def side_by_side(
    before: Iterable[tuple[File, _Kept]], now: Iterable[File]
) -> Iterator[tuple[File | None, File | None, _Kept | None]]:
    """Join two listings of the same inputs by path, in their order and without holding either in memory.

    Yields:
        A file before, with what was kept of it, and now; None on the side that has no file of this path.
    """

    def order(entry: tuple[bool, File, Any]) -> tuple[int, list[tuple[int, str]]]:
        *folders, name = entry[1].path.split(os.sep)
        return entry[1].given, [*((1, folder) for folder in folders), (0, name)]

    entries = heapq.merge(((True, *old) for old in before), ((False, new, None) for new in now), key=order)
    for _, same in groupby(entries, key=order):
        sides = {is_old: (file, kept) for is_old, file, kept in same}
        yield sides.get(True, (None,))[0], sides.get(False, (None,))[0], sides[True][1] if True in sides else None


class Item(NamedTuple):
    """An image to come: its name, the image or what reads it, and why there is none or what was said of it already."""

    name: str
    image: ImageInput | Callable[[], ImageInput] | None
    row: dict[str, Any] | None = None


class ListedFiles:
    """The files of the listing on disk: memory stays flat, and a resumed run meets the same ones in the same order."""

    num_parts = 1

    def __init__(self, parts: Path) -> None:
        self.listing = parts / "files"
        with self.listing.open(encoding="ascii") as file:
            self.total: int | None = sum(1 for _ in file)

    def read(self, part: int) -> Iterator[Item]:
        for file, row in read_listing(self.listing):
            yield Item(file.path, None if row else file.path, row)


def read_listing(path: Path) -> Iterator[tuple[File, dict[str, Any] | None]]:
    """Yield what a listing on disk holds: a file a line, with its row where that is known.

    Raises:
        ArchiveError: If it is missing or damaged.
    """
    try:
        with path.open(encoding="ascii") as listing:
            for line in listing:
                *file, row = json.loads(line)
                yield File(*file), row
    except (OSError, ValueError, TypeError) as error:
        raise ArchiveError(
            f"{path} is missing or damaged ({error!s:.300}); begin anew with another --output."
        ) from error


# ---- datasets ------------------------------------------------------------------------------------------------------


def is_dataset(inputs: Sequence[str], split: str | None) -> bool:
    """Tell a dataset from files and folders: a split is asked for, a Parquet file, or a name that is not here."""
    if len(inputs) != 1:
        if split is not None:
            raise ArchiveError("--split is for one dataset; leave it out to classify files and folders.")
        return False
    return split is not None or inputs[0].endswith(".parquet") or not os.path.lexists(inputs[0])


def dataset_revision(name: str, leave_out: Iterable[Path] = ()) -> tuple[str, str]:
    """Return the name without "@revision", and of what state it is: a Hub commit, or a hash of its files' listing."""
    if os.path.lexists(name):
        listing = hashlib.sha256()
        for file in list_files([name], leave_out=leave_out):
            listing.update(repr(file).encode())
        return name, listing.hexdigest()
    from huggingface_hub import HfApi

    name, _, revision = name.partition("@")
    with _answered(f"{name!r:.300} does not exist here, and the Hub gave no dataset of that name"):
        return name, HfApi().dataset_info(name, revision=revision or None, timeout=15).sha or ""


class StreamedDataset:
    """One split of a dataset, streamed.

    Its parts are its data files, as `split_dataset_by_node` deals them to as many nodes: so they do not depend on how
    many processes a run has.
    """

    def __init__(self, name: str, revision: str | None, split: str | None) -> None:
        """Open what `datasets.load_dataset` takes: a Hub id such as "user/name", a folder, or a Parquet file.

        Raises:
            ArchiveError: If it cannot be opened, the split must be chosen, or there is not one image column.
        """
        datasets = needs("datasets", "reading a dataset")
        here = os.path.lexists(name)
        if here and not (os.path.isfile(name) or os.path.isdir(name)):
            raise ArchiveError(f"{name!r} is neither a file nor a folder; check the path.")
        source = {"path": "parquet", "data_files": [name]} if name.endswith(".parquet") else {"path": name}
        with _answered(f"{name!r:.300} is no file or folder here, and no dataset that can be opened"):
            loaded = datasets.load_dataset(**source, revision=None if here else revision, streaming=True)
        splits = list(loaded)
        if split not in splits and not (split is None and len(splits) == 1):
            problem = f"has no split {split!r:.300}" if split else "has several splits"
            raise ArchiveError(f"{name} {problem}; choose one of {', '.join(splits)} with --split.")
        self.split = split or splits[0]
        dataset = loaded[self.split]
        features = dataset.features or {}
        images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
        if len(images) != 1 and "image" not in images:
            raise ArchiveError(
                f"the dataset has {len(images)} image columns among {', '.join(features)}; one, of type "
                "datasets.Image, is needed, or one of them named 'image'."
            )
        self.column = "image" if "image" in images else images[0]
        names = [column for column in NAME_COLUMNS if column in features][:1]
        # Undecoded: a damaged image must become a row, not the end of the stream.
        undecoded = dataset.select_columns([self.column, *names]).cast_column(self.column, datasets.Image(decode=False))
        self.dataset, self.name_column = undecoded, names[0] if names else None
        self.num_parts: int = dataset.num_shards
        known = (dataset.info.splits or {}).get(self.split)
        self.total: int | None = known.num_examples or None if known else None

    def read(self, part: int) -> Iterator[Item]:
        """Yield the images of one part in order; pixels are not decoded yet."""
        with _answered("the dataset cannot be read further", GO_ON):
            for index, row in enumerate(self.dataset.shard(num_shards=self.num_parts, index=part)):
                image, name = row[self.column] or {}, row[self.name_column] if self.name_column else None
                if name in (None, ""):  # 0 is a name
                    name = image.get("path") or f"{self.split}-{part:05d}-{index:07d}"
                name = str(name)
                if image.get("bytes"):
                    yield Item(name, image["bytes"])
                elif image.get("path"):
                    yield Item(name, partial(_fetch, image["path"]))
                else:
                    yield Item(name, _no_image)


def _no_image() -> ImageInput:
    raise ImageError("the dataset has no image in this row.")


def _fetch(path: str) -> ImageInput:
    """Return the bytes of an image that lies elsewhere ("hf://…"; the Hub's client tries again what fails for a while).

    Raises:
        ImageError: If whoever keeps it says that it is not there or not for us.
        ArchiveError: If it could not be fetched; the run stops, since the network's fault is not the image's.
    """
    if "://" not in path or os.path.lexists(path):
        return path
    import fsspec

    with _answered(f"{path!r:.300} could not be fetched", GO_ON):
        try:
            with fsspec.open(path, "rb") as file:
                return file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError as error:
            # fsspec calls a web address missing, too, whose server is silent or broken.
            cause = error.__cause__ or error
            if isinstance(cause, FileNotFoundError) or getattr(cause, "status", None) in (401, 403, 404, 410):
                raise ImageError(f"{path!r:.300} is not there, or may not be read.") from error
            raise cause from None


@contextmanager
def _answered(what: str, advice: str = "") -> Iterator[None]:
    """Turn what goes wrong with a dataset or the network into an ArchiveError that says `what` and the reason."""
    try:
        yield
    except (ArchiveError, ImageError):
        raise
    # Whatever it is: each of the libraries for the network has errors of its own, and so has each kind of storage.
    except Exception as error:
        raise ArchiveError(f"{what} ({type(error).__name__}: {str(error)[:300]}){advice}.") from error


def needs(module: str, what: str) -> Any:
    """Import a library of the extra `train`.

    Raises:
        ArchiveError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ArchiveError(
            f'{what} needs {module}, which is not installed: pip install "skin-lesion-classifier[train]"; '
            "CSV output from files and folders works without."
        ) from error

"""Inputs of the command line: image files in a fixed order, or the rows of a dataset, streamed."""

import importlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from modeling.images import IMAGE_SUFFIXES, MAX_FILE_BYTES, ImageError, ImageInput

NAME_COLUMNS = ("image_id", "isic_id", "file_name", "filename", "id")  # of datasets, for the names of images
FETCH_SECONDS = 30  # for one web address
_HUB_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}(@\S{1,200})?", re.ASCII)


class ArchiveError(RuntimeError):
    """The images cannot be classified, with the reason and what to do."""


# An image to classify: its name, and the image or a function that reads it.
Item = tuple[str, ImageInput | Callable[[], ImageInput]]


# ---- files ---------------------------------------------------------------------------------------------------------


def list_files(inputs: Sequence[str], left_out: Counter[str], own: str = "") -> Iterator[str]:
    """Yield the image files: the inputs in their order; of a folder first its files, then its folders, by name.

    A file that is named in `inputs` always counts; a file in a folder counts if its name ends like that of an image.
    An input that is named twice, or is inside another one, counts once.

    Args:
        inputs: Files and folders.
        left_out: Counts what else the folders hold: other files, hidden folders, and links to folders (which may form
            a loop).
        own: Start of the names to pass over: the output's.

    Raises:
        ArchiveError: If an input does not exist or a folder cannot be read.
    """
    if missing := [name for name in inputs if not os.path.lexists(name)]:
        raise ArchiveError(f"{missing[0]!r:.300} does not exist; check the path.")
    real = {name: Path(name).resolve() for name in inputs}
    folders = {path for name, path in real.items() if os.path.isdir(name)}
    seen: set[Path] = set()
    for name, path in real.items():
        if path not in seen and folders.isdisjoint(path.parents):
            seen.add(path)
            yield from _images_below(name, left_out, own) if path in folders else [name]


def _images_below(top: str, left_out: Counter[str], own: str) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise ArchiveError(f"the folder {error.filename!r} cannot be read ({error.strerror}); check its rights.")

    for folder, below, names in os.walk(top, onerror=refuse):
        below[:], names = (
            sorted(name for name in some if not (own and name.startswith(own))) for some in (below, names)
        )
        skipped = [name for name in below if name.startswith(".") or os.path.islink(os.path.join(folder, name))]
        left_out.update(f"hidden or linked folder {os.path.join(folder, name)!r:.300}" for name in skipped)
        below[:] = [name for name in below if name not in skipped]
        for name in names:
            if name.lower().endswith(IMAGE_SUFFIXES):
                yield os.path.join(folder, name)
            else:
                left_out[f"{os.path.splitext(name)[1]!r:.40} files"] += 1


def in_words(left_out: Counter[str]) -> str:
    """Say what `list_files` left out; "" if it was nothing."""
    what = ", ".join(f"{name} ({number})" for name, number in left_out.most_common(9))
    return f"Left out: {what}{', and more' if len(left_out) > 9 else ''}." if left_out else ""


def no_image(inputs: Iterable[str], left_out: str) -> ArchiveError:
    return ArchiveError(f"there is no image in {', '.join(map(repr, inputs)):.300}. {left_out}".rstrip())


class ListedFiles:
    """The files of a list on disk, one JSON string a line: memory stays flat, and a resumed run reads the same list."""

    def __init__(self, listing: Path) -> None:
        self.listing = listing
        with listing.open(encoding="ascii") as file:
            self.total: int | None = sum(1 for _ in file)

    def items(self) -> Iterator[Item]:
        with self.listing.open(encoding="ascii") as file:
            yield from ((path, path) for path in map(json.loads, file))


# ---- datasets ------------------------------------------------------------------------------------------------------


def is_dataset(inputs: Sequence[str], split: str | None) -> bool:
    """True for a dataset: a split is given, or the one input is a Parquet file or a Hub id."""
    if split is not None and len(inputs) > 1:
        raise ArchiveError("--split is for one dataset; leave it out to classify files and folders.")
    return len(inputs) == 1 and (split is not None or inputs[0].endswith(".parquet") or is_hub_id(inputs[0]))


def is_hub_id(name: str) -> bool:
    """True for "user/name" or "user/name@revision", unless it exists here or ends like the name of an image."""
    return bool(_HUB_ID.fullmatch(name)) and not os.path.lexists(name) and not name.lower().endswith(IMAGE_SUFFIXES)


class StreamedDataset:
    """One split of a dataset, streamed. `revision` is its commit on the Hub, or a hash of the state of its local files."""

    def __init__(self, given: str, split: str | None, *, fetch_urls: bool = False) -> None:
        """Open a dataset.

        Args:
            given: A Hub id, also with "@revision"; a folder, or a Parquet file.
            split: Default: its only split.
            fetch_urls: Fetch images for which a row has nothing but a web address.

        Raises:
            ArchiveError: If it cannot be opened, the split must be chosen, or there is not one image column.
        """
        datasets, on_hub = needs("datasets", "reading a dataset"), is_hub_id(given)
        if not (on_hub or os.path.isfile(given) or os.path.isdir(given)):
            raise ArchiveError(f"{given!r:.300} does not exist, or is neither a file nor a folder; check the path.")
        name, _, revision = given.partition("@") if on_hub else (given, "", "")
        source = {"path": "parquet", "data_files": [name]} if name.endswith(".parquet") else {"path": name}
        with _explained(
            f"{given!r:.300} cannot be opened as a dataset{' of the Hub; it is not here' if on_hub else ''}"
        ):
            builder = datasets.load_dataset_builder(**source, revision=revision or None)
            loaded = builder.as_streaming_dataset()
        self.revision: str = builder.hash if on_hub else f"{builder.hash}/{builder.config_id}"
        splits = list(loaded)
        if split not in splits and not (split is None and len(splits) == 1):
            problem = f"has no split {split!r:.300}" if split else "has several splits"
            raise ArchiveError(f"{name} {problem}; choose one of {', '.join(splits)} with --split.")
        self.split, self.fetch_urls = split or splits[0], fetch_urls
        # Files of a dataset on the Hub are its own; any other address was written into it by its author.
        self.own_address = f"hf://datasets/{name}@" if on_hub else None
        dataset = loaded[self.split]
        features = dataset.features or {}
        images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
        if len(images) != 1 and "image" not in images:
            raise ArchiveError(
                f"the dataset has {len(images)} image columns among {', '.join(features)}; one, of type "
                "datasets.Image, is needed, or one of them named 'image'."
            )
        self.column = "image" if "image" in images else images[0]
        self.name_column = next((column for column in NAME_COLUMNS if column in features), None)
        columns = [self.column, *([self.name_column] if self.name_column else [])]
        # Undecoded: a damaged image must become a row, not the end of the stream.
        self.dataset = dataset.select_columns(columns).cast_column(self.column, datasets.Image(decode=False))
        known = (dataset.info.splits or {}).get(self.split)
        self.total: int | None = known.num_examples or None if known else None

    def items(self) -> Iterator[Item]:
        """Yield the images in order; pixels are not decoded yet."""
        with _explained("the dataset cannot be read further", "; run the same command again to go on"):
            for index, row in enumerate(self.dataset):
                image, name = row[self.column] or {}, row[self.name_column] if self.name_column else None
                if name in (None, ""):  # 0 is a name
                    name = image.get("path") or f"{self.split}-{index:07d}"
                yield str(name), image.get("bytes") or partial(self._located, image.get("path"))

    def _located(self, path: str | None) -> ImageInput:
        """Return a local path as it is, and the bytes behind an address.

        Raises:
            ImageError: If the row has neither, or the address may not or cannot be fetched.
        """
        if not path:
            raise ImageError("the dataset has no image in this row.")
        if "://" not in path:
            return path
        is_own = self.own_address and path.split("::")[-1].startswith(self.own_address)
        if not (is_own or self.fetch_urls):
            raise ImageError(f"{path!r:.300} is a web address; the images of such rows are fetched with --fetch_urls.")
        import aiohttp
        import fsspec

        timeout = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=FETCH_SECONDS)}}
        try:
            with fsspec.open(path, "rb", **(timeout if path.startswith("http") else {})) as file:
                return file.read(MAX_FILE_BYTES + 1)
        except Exception as error:  # every kind of storage has errors of its own
            raise ImageError(f"{path!r:.300} could not be fetched ({_reason(error)}).") from error


@contextmanager
def _explained(what: str, advice: str = "") -> Iterator[None]:
    """Turn an error of the dataset or the network into an ArchiveError that says `what` and the reason."""
    try:
        yield
    # The libraries for the network and for each kind of storage have errors of their own.
    except Exception as error:
        raise ArchiveError(f"{what} ({_reason(error)}){advice}.") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def needs(module: str, what: str) -> Any:
    """Import a library of the extra `train`; raise an ArchiveError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        advice = 'run `pip install -e ".[train]"` in a clone; CSV output from files and folders works without it'
        raise ArchiveError(f"{what} needs {module}, which is not installed: {advice}.") from error

"""ISIC 2019 as a `datasets` builder: the official download, or a local copy of its layout.

Every image and every row is checked once, before anything is trained; the result is cached until a file changes.

Source: https://challenge.isic-archive.com/landing/2019/; licence CC BY-NC 4.0.
"""

import csv
import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import datasets
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from modeling.images import ImageError, decode_image
from modeling.labels import CODES

URL = "https://isic-challenge-data.s3.amazonaws.com/2019/"
HOMEPAGE = "https://challenge.isic-archive.com/landing/2019/"
IMAGES = "ISIC_2019_Training_Input"
LABELS_CSV = "ISIC_2019_Training_GroundTruth.csv"
METADATA_CSV = "ISIC_2019_Training_Metadata.csv"
LAYOUT = f"a folder {IMAGES}/ (or {IMAGES}.zip), {LABELS_CSV} and {METADATA_CSV}"

# The ninth column of the official CSV: none of the eight diagnoses. It counts in the label sum and has no label.
UNKNOWN_CLASS = "UNK"
SOURCES = ("BCN", "HAM", "MSK")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# A check decodes the whole file; the picture itself is not needed, so a JPEG may be decoded as small as this.
CHECK_SIDE_PX = 32


class DataError(ValueError):
    """The data cannot be used as they are; the message counts what is wrong, names the first, and says what to do."""


class Problem(NamedTuple):
    """One image or row that cannot be used; `kind` is what is counted in the error."""

    image_id: str
    path: str
    kind: str
    detail: str = ""


FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "image_id": datasets.Value("string"),
        "label": datasets.ClassLabel(names=list(CODES)),
        "lesion_id": datasets.Value("string"),
        "source": datasets.Value("string"),
        "age_approx": datasets.Value("float32"),
        "sex": datasets.Value("string"),
        "anatom_site_general": datasets.Value("string"),
    }
)


def load_isic2019(
    data_dir: str | Path | None = None, *, skip_bad_images: bool = False, skipped_csv: Path | None = None
) -> datasets.Dataset:
    """Return all training images of ISIC 2019 with label and metadata.

    Args:
        data_dir: A local copy in the official layout; None downloads the official files (9.1 GB) into the cache.
        skip_bad_images: Leave out what cannot be used and list it, instead of raising.
        skipped_csv: Where to list it (image_id, path, reason); `skipped.csv` in the working directory if None.

    Raises:
        DataError: If a file, a column, an image or a label is missing, broken or double.
    """
    builder = Isic2019(data_dir=None if data_dir is None else str(data_dir), skip_bad_images=skip_bad_images)
    builder.download_and_prepare()
    dataset = _as_dataset(builder)
    if any(not os.path.isfile(path) for path in image_paths(dataset)):
        # Unpacked files were removed from the cache since: unpack and check again (downloads are kept).
        builder.download_and_prepare(download_mode=datasets.DownloadMode.REUSE_CACHE_IF_EXISTS)
        dataset = _as_dataset(builder)
    if skip_bad_images:
        target = skipped_csv or Path("skipped.csv")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(builder.cache_dir) / "skipped.csv", target)
    return dataset


@dataclass
class Isic2019Config(datasets.BuilderConfig):
    """`state` stands for the files as they are now: another state is another entry of the cache."""

    skip_bad_images: bool = False
    state: str = ""


class Isic2019(datasets.GeneratorBasedBuilder):
    """One split, `train`, of every image; splitting by lesion is the job of `modeling.data.splits`."""

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = Isic2019Config

    def __init__(self, *args: Any, data_dir: str | None = None, **kwargs: Any) -> None:
        if data_dir is not None:
            data_dir = os.path.abspath(os.path.expanduser(data_dir))
            kwargs["state"] = state_of(Path(data_dir))
        super().__init__(*args, data_dir=data_dir, **kwargs)

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="ISIC 2019 training images", features=FEATURES, homepage=HOMEPAGE, license="CC BY-NC 4.0"
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        if self.config.data_dir is None:
            images, labels_csv, metadata_csv = (
                Path(path) for path in dl_manager.download([f"{URL}{IMAGES}.zip", URL + LABELS_CSV, URL + METADATA_CSV])
            )
        else:
            images, labels_csv, metadata_csv = local_files(Path(self.config.data_dir))
        if images.is_file():
            images = unpack(images, Path(self._cache_dir_root) / "isic2019_unpacked")

        rows, problems = read_rows(labels_csv, metadata_csv, images)
        problems += unreadable_images([row["image_id"] for row in rows], lambda index: rows[index]["image"])
        if problems and not self.config.skip_bad_images:
            raise DataError(describe(problems))
        bad = {problem.image_id for problem in problems}
        rows = [row for row in rows if row["image_id"] not in bad]
        if not rows:
            raise DataError(f"no usable image is left. {describe(problems)}" if problems else "the CSV has no row.")
        if problems:
            datasets.logging.get_logger("modeling").warning(
                f"left out {len(bad)} of {len(bad) + len(rows)} images: {counts(problems)}"
            )
        write_skipped(problems, Path(self._output_dir) / "skipped.csv")
        return [datasets.SplitGenerator(name=datasets.Split.TRAIN, gen_kwargs={"rows": rows})]

    def _generate_examples(self, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
        for row in rows:
            yield row["image_id"], row  # the image is a path: the cache holds no copy of the pixels


def local_files(data_dir: Path) -> tuple[Path, Path, Path]:
    """Return (images folder or zip, labels CSV, metadata CSV) of a copy in the official layout."""
    if not data_dir.is_dir():
        raise DataError(f"{data_dir} is not a folder; --data_dir takes the folder that holds {LAYOUT}.")
    folder = data_dir / IMAGES
    images = folder if folder.is_dir() else data_dir / f"{IMAGES}.zip"
    files = (images, data_dir / LABELS_CSV, data_dir / METADATA_CSV)
    missing = [path.name for path in files if not path.exists()]
    if missing:
        raise DataError(
            f"{data_dir} lacks {', '.join(missing)}; it must hold {LAYOUT}. They are at {HOMEPAGE}; "
            "or leave --data_dir out to download them."
        )
    return files


def state_of(data_dir: Path) -> str:
    """Return a digest that changes when a CSV, or the name, size or time of an image changes."""
    images, labels_csv, metadata_csv = local_files(data_dir)
    digest = hashlib.sha256(labels_csv.read_bytes() + b"\0" + metadata_csv.read_bytes())
    entries = [images] if images.is_file() else images_in(images)
    for path in entries:
        stat = path.stat()
        digest.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted; licence texts and hidden files are none."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.lower().endswith(IMAGE_SUFFIXES)]
    return [folder / name for name in sorted(names) if not name.startswith(".")]


def unpack(archive: Path, cache_dir: Path) -> Path:
    """Unpack the images of the official zip once and return their folder; whole, or not there."""
    stat = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:16]
    target = cache_dir / key
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            unsafe = [member.filename for member in members if _leaves_folder(member)]
            if unsafe:
                raise DataError(
                    f"{len(unsafe)} entries of {archive} point outside of it, such as {unsafe[:3]}: this is not "
                    f"the official archive and nothing was unpacked; download it again from {HOMEPAGE}."
                )
            wanted = [member for member in members if member.filename.lower().endswith(IMAGE_SUFFIXES)]
            wanted = [member for member in wanted if not _name(member).startswith(".")]
            if target.is_dir() and len(images_in(target)) == len(wanted):
                return target
            partial = cache_dir / f"{key}.{os.getpid()}"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            for member in tqdm(wanted, desc=f"unpacking {archive.name}", unit="image"):
                if (partial / _name(member)).exists():
                    raise DataError(f"{archive} holds {_name(member)} twice; download it again from {HOMEPAGE}.")
                with opened.open(member) as source, (partial / _name(member)).open("wb") as copy:
                    shutil.copyfileobj(source, copy)
    except (zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{archive} is not a whole zip file ({error}); download it again from {HOMEPAGE}.") from error
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return target


def _name(member: zipfile.ZipInfo) -> str:
    return PurePosixPath(member.filename).name


def _leaves_folder(member: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    link = (member.external_attr >> 16) & 0o170000 == 0o120000
    return path.is_absolute() or ".." in path.parts or ":" in member.filename or link


def read_rows(labels_csv: Path, metadata_csv: Path, images: Path) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Join both CSVs with the image files; return the rows of the contract that are whole, and what is wrong."""
    labels = _read_csv(labels_csv, ("image", *CODES))
    metadata = _read_csv(metadata_csv, ("image", "age_approx", "anatom_site_general", "lesion_id", "sex"))
    paths: dict[str, Path] = {}
    problems: list[Problem] = []
    for path in images_in(images):
        if path.stem in paths:
            problems.append(Problem(path.stem, str(path), "image file twice under one id"))
        paths[path.stem] = path

    def note(ids: Iterable[str], kind: str) -> None:
        problems.extend(Problem(image_id, str(paths.get(image_id, "")), kind) for image_id in sorted(set(ids)))

    note(labels["image"][labels["image"].duplicated()], f"row twice in {LABELS_CSV}")
    note(metadata["image"][metadata["image"].duplicated()], f"row twice in {METADATA_CSV}")
    labels, metadata = labels.drop_duplicates("image"), metadata.drop_duplicates("image")
    note(set(metadata["image"]) - set(labels["image"]), f"row in {METADATA_CSV} without a row in {LABELS_CSV}")
    note(set(labels["image"]) - set(metadata["image"]), f"row in {LABELS_CSV} without a row in {METADATA_CSV}")
    note(set(labels["image"]) - set(paths), "row without an image file")
    note(set(paths) - set(labels["image"]), "image without a row")

    columns = [code for code in (*CODES, UNKNOWN_CLASS) if code in labels]
    one_hot = labels[columns].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)  # (N, 8 or 9)
    whole = ((one_hot == 1).sum(axis=1) == 1) & (one_hot.sum(axis=1) == 1)
    note(labels["image"][~whole], f"labels do not sum to one (exactly one of {' '.join(columns)} must be 1)")
    unknown = whole & (np.nan_to_num(one_hot).argmax(axis=1) >= len(CODES))
    note(labels["image"][unknown], f"labelled {UNKNOWN_CLASS}, which is none of the eight diagnoses")

    labels = labels.assign(label=np.nan_to_num(one_hot).argmax(axis=1))[whole & ~unknown]
    bad = {problem.image_id for problem in problems}
    joined = labels[["image", "label"]].merge(metadata, on="image").sort_values("image")
    ages = pd.to_numeric(joined["age_approx"], errors="coerce")
    rows = [
        {
            "image": str(paths[row.image]),
            "image_id": row.image,
            "label": CODES[row.label],
            "lesion_id": row.lesion_id or None,
            "source": source_of(row.lesion_id),
            "age_approx": None if np.isnan(age) else float(age),
            "sex": row.sex or None,
            "anatom_site_general": row.anatom_site_general or None,
        }
        for row, age in zip(joined.itertuples(), ages, strict=True)
        if row.image not in bad
    ]
    return rows, problems


def source_of(lesion_id: str | None) -> str:
    """Return the hospital that the prefix of a lesion id stands for, or "unknown"."""
    prefix = (lesion_id or "")[:3]
    return prefix if prefix in SOURCES else "unknown"


def _read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True, encoding="utf-8-sig")
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a CSV ({error}); download it again from {HOMEPAGE}.") from error
    missing = [column for column in columns if column not in table]
    if missing:
        raise DataError(
            f"{path} lacks {len(missing)} columns: {', '.join(missing)} (it has {', '.join(table.columns[:12])}); "
            f"download it again from {HOMEPAGE}."
        )
    return table.apply(lambda column: column.str.strip())


def unreadable_images(image_ids: Sequence[str], load: Callable[[int], bytes | str]) -> list[Problem]:
    """Decode every image to its last byte, in threads; return those that fail.

    Args:
        image_ids: What an error calls them.
        load: Gives the file of an index, as a path or as bytes.
    """

    def check(index: int) -> Problem | None:
        image = load(index)
        path = image if isinstance(image, str) else ""
        if (os.path.getsize(path) if path else len(image)) == 0:
            return Problem(image_ids[index], path, "image file is empty")
        try:
            decode_image(image, min_side_px=CHECK_SIDE_PX)
        except ImageError as error:
            return Problem(image_ids[index], path, "image cannot be read (truncated, or no image)", str(error))
        return None

    n = len(image_ids)
    # Pillow releases the interpreter while it decodes, so threads use every core.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = tqdm(pool.map(check, range(n)), total=n, desc="checking images", unit="image", disable=n == 0)
        return [problem for problem in results if problem is not None]


def counts(problems: Sequence[Problem]) -> str:
    """Return "3 × image file is empty; 1 × row without an image file", in the order of appearance."""
    kinds = list(dict.fromkeys(problem.kind for problem in problems))
    return "; ".join(f"{sum(problem.kind == kind for problem in problems)} × {kind}" for kind in kinds)


def describe(problems: Sequence[Problem], *, shown: int = 5) -> str:
    """Return the message of the error: counts per kind, the first few of each, and what to do."""
    lines = [f"{len({problem.image_id for problem in problems})} images cannot be used:"]
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


def image_paths(dataset: datasets.Dataset) -> list[str]:
    """Return the path of each image that is a file on disk."""
    stored = dataset.with_format("arrow")[:]["image"].combine_chunks().field("path")
    return [path for path in stored.to_pylist() if path is not None]


def _as_dataset(builder: Isic2019) -> datasets.Dataset:
    dataset = builder.as_dataset(split="train")
    if not isinstance(dataset, datasets.Dataset):
        raise TypeError(f"the builder returned {type(dataset).__name__}, not a Dataset")
    return dataset

"""ISIC 2019: the official download, or a local copy of its layout.

Source: https://challenge.isic-archive.com/landing/2019/; licence CC BY-NC 4.0.
"""

import hashlib
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import numpy as np
import pandas as pd
from filelock import FileLock
from tqdm.auto import tqdm

from modeling.data.problems import DataError, Problem, read_ages
from modeling.labels import CODES

URL = "https://isic-challenge-data.s3.amazonaws.com/2019/"
HOMEPAGE = "https://challenge.isic-archive.com/landing/2019/"
IMAGES = "ISIC_2019_Training_Input"
LABELS_CSV = "ISIC_2019_Training_GroundTruth.csv"
METADATA_CSV = "ISIC_2019_Training_Metadata.csv"
TRAINING = (IMAGES, LABELS_CSV, METADATA_CSV)
TEST = ("ISIC_2019_Test_Input", "ISIC_2019_Test_GroundTruth.csv", "ISIC_2019_Test_Metadata.csv")

# The ninth column of the official CSV: none of the eight diagnoses. It counts in the label sum and has no label.
UNKNOWN_CLASS = "UNK"
SOURCES = ("BCN", "HAM", "MSK")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

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
    data_dir: str | Path | None = None, *, official_test: bool = False
) -> tuple[datasets.Dataset, list[Problem]]:
    """Return all training images of ISIC 2019 whose rows are whole, and what is wrong with the others.

    The images are paths, not yet decoded. The table is cached until a CSV or the name, size or time of an image changes.

    Args:
        data_dir: A local copy in the official layout; None downloads the official files (9.1 GB) into the cache.
        official_test: The 8,238 test images instead, with a ninth label, UNK; no lesion id is known of them.

    Raises:
        DataError: If a file or a column is missing or broken.
    """
    names, codes = (TEST, (*CODES, UNKNOWN_CLASS)) if official_test else (TRAINING, CODES)
    images, labels_csv, metadata_csv = official_files(data_dir, names)
    rows, problems = read_rows(labels_csv, metadata_csv, images, names=names, codes=codes)
    if not rows:
        raise DataError(f"{labels_csv} and {images} have no image with a whole row in common.")
    # What of a row may change: the cache is keyed by what is handed over.
    times = [os.stat(row["image"]).st_mtime_ns for row in rows]
    features = datasets.Features({**FEATURES, "label": datasets.ClassLabel(names=list(codes))})
    dataset = datasets.Dataset.from_generator(_rows, features=features, gen_kwargs={"rows": rows, "times": times})
    return dataset, problems


def _rows(rows: Sequence[dict[str, Any]], times: Sequence[int]) -> Iterator[dict[str, Any]]:
    yield from rows


def official_files(data_dir: str | Path | None, names: Sequence[str]) -> list[Path]:
    """Return the folder of images and the CSVs of these names: of a local copy, or downloaded; a zip is unpacked once."""
    images_name, *csv_names = names
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    if data_dir is None:
        # By address alone: the official files do not change, and a run without network finds what it has.
        config = datasets.DownloadConfig(cache_dir=datasets.config.DOWNLOADED_DATASETS_PATH, use_etag=False)
        urls = [f"{URL}{images_name}.zip", *(URL + name for name in csv_names)]
        try:
            images, *tables = (Path(path) for path in datasets.DownloadManager(download_config=config).download(urls))
        except (FileNotFoundError, ConnectionError) as error:
            raise DataError(
                f"ISIC 2019 could not be downloaded from {URL} ({type(error.__cause__ or error).__name__}). Check the "
                f"network; or download it elsewhere ({HOMEPAGE}) and pass --data_dir DIR, see docs/firewall.md."
            ) from error
    else:
        folder = Path(os.path.abspath(os.path.expanduser(data_dir)))
        layout = f"a folder {images_name}/ (or {images_name}.zip), {' and '.join(csv_names)}"
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder; --data_dir takes the folder that holds {layout}.")
        images = folder / images_name if (folder / images_name).is_dir() else folder / f"{images_name}.zip"
        tables = [folder / name for name in csv_names]
        missing = [path.name for path in tables if not path.is_file()]
        missing += [] if images.is_dir() or images.is_file() else [images.name]
        if missing:
            raise DataError(
                f"{folder} lacks the file{'s' if len(missing) > 1 else ''} {', '.join(missing)}; it must hold {layout}. They are "
                f"at {HOMEPAGE}; or leave --data_dir out to download them."
            )
    return [images if images.is_dir() else unpack(images, cache / "isic2019_unpacked"), *tables]


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
    cache_dir.mkdir(parents=True, exist_ok=True)
    try:
        # One run, or one machine of a run, unpacks; those that start beside it wait and use the same folder.
        with zipfile.ZipFile(archive) as opened, FileLock(cache_dir / f"{key}.lock"):
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
            with tempfile.TemporaryDirectory(dir=cache_dir) as scratch:
                partial = Path(scratch) / key
                partial.mkdir()
                for member in tqdm(wanted, desc=f"unpacking {archive.name}", unit="image"):
                    if (partial / _name(member)).exists():
                        raise DataError(f"{archive} holds {_name(member)} twice; download it again from {HOMEPAGE}.")
                    with opened.open(member) as source, (partial / _name(member)).open("wb") as copy:
                        shutil.copyfileobj(source, copy)
                shutil.rmtree(target, ignore_errors=True)
                partial.rename(target)
    # zipfile answers an encrypted entry with RuntimeError, an unknown method of packing with NotImplementedError.
    except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, zlib.error) as error:
        raise DataError(
            f"{archive} cannot be unpacked: it is not a whole zip file, is encrypted, or is packed by an unknown method "
            f"({error}). Download it again from {HOMEPAGE}."
        ) from error
    return target


def _name(member: zipfile.ZipInfo) -> str:
    return PurePosixPath(member.filename).name


def _leaves_folder(member: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    link = (member.external_attr >> 16) & 0o170000 == 0o120000
    return path.is_absolute() or ".." in path.parts or ":" in member.filename or link


def read_rows(
    labels_csv: Path, metadata_csv: Path, images: Path, *, names: tuple[str, str, str], codes: tuple[str, ...]
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Join both CSVs with the image files; return the rows of the contract that are whole, and what is wrong."""
    _, labels_name, metadata_name = names  # for messages: a download has others
    labels = _read_csv(labels_csv, ("image", *codes))
    lesion = () if names == TEST else ("lesion_id",)  # the official test does not tell lesions
    metadata = _read_csv(metadata_csv, ("image", "age_approx", "anatom_site_general", *lesion, "sex"))
    metadata["lesion_id"] = metadata["lesion_id"] if lesion else ""
    paths: dict[str, Path] = {}
    problems: list[Problem] = []
    for path in images_in(images):
        if path.stem in paths:
            problems.append(Problem(path.stem, str(path), "image file twice under one id"))
        paths[path.stem] = path

    def note(ids: Iterable[str], kind: str) -> None:
        problems.extend(Problem(image_id, str(paths.get(image_id, "")), kind) for image_id in sorted(set(ids)))

    note(labels["image"][labels["image"].duplicated()], f"row twice in {labels_name}")
    note(metadata["image"][metadata["image"].duplicated()], f"row twice in {metadata_name}")
    labels, metadata = labels.drop_duplicates("image"), metadata.drop_duplicates("image")
    note(set(metadata["image"]) - set(labels["image"]), f"row in {metadata_name} without a row in {labels_name}")
    note(set(labels["image"]) - set(metadata["image"]), f"row in {labels_name} without a row in {metadata_name}")
    broken = {image_id for image_id, path in paths.items() if not path.is_file()}
    note(broken, "image is a link to nothing, or no ordinary file")
    note(set(labels["image"]) - set(paths), "row without an image file")
    note(set(paths) - set(labels["image"]), "image without a row")

    columns = [code for code in (*CODES, UNKNOWN_CLASS) if code in labels]
    one_hot = labels[columns].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)  # (N, 8 or 9)
    whole = ((one_hot == 1).sum(axis=1) == 1) & (one_hot.sum(axis=1) == 1)
    note(labels["image"][~whole], f"labels do not sum to one (exactly one of {' '.join(columns)} must be 1)")
    unknown = whole & (np.nan_to_num(one_hot).argmax(axis=1) >= len(codes))
    note(labels["image"][unknown], f"labelled {UNKNOWN_CLASS}, which is none of the eight diagnoses")

    labels = labels.assign(label=np.nan_to_num(one_hot).argmax(axis=1))[whole & ~unknown]
    bad = {problem.image_id for problem in problems}
    joined = labels[["image", "label"]].merge(metadata, on="image").sort_values("image")
    ages, not_ages = read_ages(joined["image"].tolist(), joined["age_approx"].tolist())
    problems += not_ages
    bad |= {problem.image_id for problem in not_ages}
    rows = [
        {
            "image": str(paths[row.image]),
            "image_id": row.image,
            "label": codes[row.label],
            "lesion_id": row.lesion_id or None,
            "source": source_of(row.lesion_id),
            "age_approx": age,
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

"""ISIC 2019: the official download, or a local copy of its layout.

Source: https://challenge.isic-archive.com/landing/2019/; licence CC BY-NC 4.0.
"""

import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
from filelock import FileLock

from modeling.data.folders import Listing, images_of_paths, is_image, walk
from modeling.data.problems import DataError, Problem
from modeling.data.tables import read_table
from modeling.labels import CODES

URL = "https://isic-challenge-data.s3.amazonaws.com/2019/"
HOMEPAGE = "https://challenge.isic-archive.com/landing/2019/"
IMAGES = "ISIC_2019_Training_Input"
LABELS_CSV = "ISIC_2019_Training_GroundTruth.csv"
METADATA_CSV = "ISIC_2019_Training_Metadata.csv"
TRAINING = (IMAGES, LABELS_CSV, METADATA_CSV)
TEST = ("ISIC_2019_Test_Input", "ISIC_2019_Test_GroundTruth.csv", "ISIC_2019_Test_Metadata.csv")

# The ninth column of the official CSVs: none of the eight diagnoses. Only images of the official test have it.
UNKNOWN_CLASS = "UNK"
SOURCES = ("BCN", "HAM", "MSK")


def load_isic2019(data_dir: str | Path | None = None, *, official_test: bool = False) -> Listing:
    """List all training images of ISIC 2019 whose rows are whole, and what is wrong with the others.

    Args:
        data_dir: A local copy in the official layout; None downloads the official files (9.1 GB) into the cache.
        official_test: The 8,238 test images instead, with a ninth label, UNK; their lesion ids are not published.

    Raises:
        DataError: If a file or a column is missing or broken.
    """
    images, labels_csv, metadata_csv = official_files(data_dir, TEST if official_test else TRAINING)
    labels = read_table(labels_csv, ("image", *CODES))
    lesion = () if official_test else ("lesion_id",)
    metadata = read_table(metadata_csv, ("image", "age_approx", "anatom_site_general", *lesion, "sex"))
    files = [images / name for name in walk(images) if is_image(name)]
    paths = {path.stem: str(path) for path in files}
    problems: list[Problem] = []

    def note(ids: Iterable[str], kind: str) -> None:
        problems.extend(Problem(image_id, kind) for image_id in sorted(set(ids)))

    note((path.stem for path in files if paths[path.stem] != str(path)), "image file twice under one id")
    codes = [code for code in (*CODES, UNKNOWN_CLASS) if code in labels]
    one_hot = labels[codes].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)  # (N, 8 or 9)
    whole = ((one_hot == 1).sum(axis=1) == 1) & (one_hot.sum(axis=1) == 1)
    note(labels["image"][~whole], f"labels do not sum to one (exactly one of {' '.join(codes)} must be 1)")
    labels = labels.assign(label=np.array(codes)[np.nan_to_num(one_hot).argmax(axis=1)])

    table = labels[["image", "label"]].merge(metadata, on="image").sort_values("image")
    note({*labels["image"], *metadata["image"]} - paths.keys(), "row without an image file")
    note(paths.keys() - set(table["image"]), "image without a row in both CSVs")
    note(table["image"][table["image"].duplicated()], "image with more than one row")
    table = table[~table["image"].isin({problem.image_id for problem in problems})]
    if table.empty:
        raise DataError(f"{labels_csv} and {images} have no image with a whole row in common.")
    table = table.rename(columns={"image": "image_id"})
    table = table.assign(source=table["lesion_id"].map(source_of) if lesion else "unknown")
    columns = {str(name): table[name].tolist() for name in table}
    image_files = images_of_paths([paths[name] for name in columns["image_id"]])
    return Listing(image_files, columns["image_id"], columns, "label", ["train"] * len(table), problems)


def official_files(data_dir: str | Path | None, names: Sequence[str]) -> list[Path]:
    """Return the folder of images and the CSVs of these names: of a local copy, or downloaded and unpacked once."""
    images_name, *csv_names = names
    if data_dir is not None:
        folder = Path(data_dir).expanduser().absolute()
        if missing := [name for name in names if not (folder / name).exists()]:
            raise DataError(
                f"{folder} lacks {', '.join(missing)}; it must hold a folder {images_name}/ (the unpacked zip), "
                f"{' and '.join(csv_names)}. They are at {HOMEPAGE}; or leave --data_dir out to download them."
            )
        return [folder / name for name in names]
    # By address alone: the official files do not change, and a run without network finds what it has.
    config = datasets.DownloadConfig(cache_dir=datasets.config.DOWNLOADED_DATASETS_PATH, use_etag=False)
    urls = [f"{URL}{images_name}.zip", *(URL + name for name in csv_names)]
    try:
        archive, *tables = (Path(path) for path in datasets.DownloadManager(download_config=config).download(urls))
    except (FileNotFoundError, ConnectionError) as error:
        raise DataError(
            f"ISIC 2019 could not be downloaded from {URL} ({type(error.__cause__ or error).__name__}). Check the network; or "
            f"download it elsewhere ({HOMEPAGE}), unpack the zip and pass --data_dir DIR, see docs/firewall.md."
        ) from error
    return [unpack(archive, Path(datasets.config.HF_DATASETS_CACHE) / "isic2019_unpacked"), *tables]


def unpack(archive: Path, cache_dir: Path) -> Path:
    """Extract the official zip once and return the folder of its content; it appears only when complete.

    Raises:
        DataError: If it is not a complete zip file, such as a proxy's HTML page.
    """
    target = cache_dir / f"{archive.name}.unpacked"
    cache_dir.mkdir(parents=True, exist_ok=True)
    try:
        # One run extracts; others that start at the same time wait and use the same folder.
        with FileLock(cache_dir / f"{archive.name}.lock"):
            if not target.is_dir():
                with zipfile.ZipFile(archive) as opened, tempfile.TemporaryDirectory(dir=cache_dir) as scratch:
                    opened.extractall(Path(scratch) / "whole")  # which leaves out "..", absolute paths and links
                    (Path(scratch) / "whole").rename(target)
    except (zipfile.BadZipFile, EOFError, RuntimeError, zlib.error) as error:  # RuntimeError: of a damaged header
        raise DataError(
            f"{archive} is not a complete zip file ({error}); delete it and run the command again."
        ) from error
    return target


def source_of(lesion_id: str | None) -> str:
    """Return the source that the prefix of a lesion id names, or "unknown"."""
    prefix = (lesion_id or "")[:3]
    return prefix if prefix in SOURCES else "unknown"

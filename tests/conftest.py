"""Fixtures that several test files share. Tests make their own data; real images are switched on by LESION_TEST_DATA."""

import csv
import os
from pathlib import Path

# Set before any Hub client is imported: no test may wait for a network that is not there.
os.environ.setdefault("HF_HUB_OFFLINE", "0")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
# datasets would report each load_dataset, of a local folder too.
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# With `pytest -n 2` each process takes its share of the cores.
if (n_workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // n_workers)))

from modeling.runtime import prepare_process

prepare_process()  # before torch is loaded: servers and training processes share the cores with the tests

# isort: split
import numpy as np
import pytest
from PIL import Image, ImageDraw

from modeling.labels import CODES
from support.untrained import untrained_folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that have slow tests, so that no process is left alone with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that holds isic2019/, isic2019_csv/ and originals/."""
    folder = os.environ.get("LESION_TEST_DATA")
    if not folder:
        pytest.skip(
            "needs real ISIC 2019 data: set LESION_TEST_DATA to the folder that holds isic2019/ and isic2019_csv/"
        )
    path = Path(folder).resolve()
    if not (path / "isic2019").is_dir():
        pytest.fail(f"LESION_TEST_DATA={folder} holds no folder isic2019")
    return path


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a tiny network and random weights, four diagnoses, 64 px."""
    lesion = {"package_version": "0", "run_id": "tiny", "dataset": "demo", "synthetic": True, "operating_points": []}
    return untrained_folder(tmp_path_factory.mktemp("tiny") / "model", spread=0.5, onnx=True, **lesion)


@pytest.fixture(scope="session")
def scored_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with the metrics and figures of a real evaluation of a made-up model; only to be read."""
    from support.scored import make_scored_folder

    return make_scored_folder(tmp_path_factory.mktemp("scored"))


@pytest.fixture
def lesion_image() -> Image.Image:
    """A brown blot on skin, 160x120."""
    image = Image.new("RGB", (160, 120), (224, 176, 150))
    ImageDraw.Draw(image).ellipse((50, 30, 110, 90), fill=(96, 58, 40))
    return image


@pytest.fixture(scope="session")
def isic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ISIC 2019's official layout in small: 84 blots, ten lesions of each default diagnosis and four of AK, two photos each.

    The colour tells the diagnosis, so that a tiny network learns it in a few epochs.
    """
    colours = {
        "BCC": (205, 120, 130),
        "BKL": (190, 150, 80),
        "MEL": (50, 40, 60),
        "NV": (130, 80, 50),
        "AK": (220, 90, 70),
    }
    folder = tmp_path_factory.mktemp("isic")
    images = folder / "ISIC_2019_Training_Input"
    images.mkdir()
    rng = np.random.default_rng(0)
    labels, metadata = [], []
    for code, colour in colours.items():
        for lesion in range(4 if code == "AK" else 10):
            for _ in range(2):
                name = f"ISIC_{len(labels):07d}"
                image = Image.new("RGB", (48, 36), tuple(int(value) for value in rng.normal((224, 176, 150), 8)))
                blot = tuple(int(value) for value in np.clip(rng.normal(colour, 12), 0, 255))
                x, y, r = rng.integers(14, 34), rng.integers(12, 24), rng.integers(7, 11)
                ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), fill=blot)
                image.save(images / f"{name}.jpg", quality=95)
                labels.append([name, *(float(code == other) for other in (*CODES, "UNK"))])
                site = ["anterior torso", "lower extremity", ""][lesion % 3]
                metadata.append(
                    [name, 30 + 5 * (lesion % 9), site, f"HAM_{code}{lesion:03d}", ["male", "female"][lesion % 2]]
                )
    for name, header, rows in (
        ("ISIC_2019_Training_GroundTruth.csv", ["image", *CODES, "UNK"], labels),
        (
            "ISIC_2019_Training_Metadata.csv",
            ["image", "age_approx", "anatom_site_general", "lesion_id", "sex"],
            metadata,
        ),
    ):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    return folder

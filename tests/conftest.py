"""Fixtures that several test files share. Tests make their own data; real images are switched on by LESION_TEST_DATA."""

import os
from pathlib import Path

# Set before any Hub client is imported: no test may wait for a network that is not there.
os.environ.setdefault("HF_HUB_OFFLINE", "0")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import pytest
import torch
from PIL import Image, ImageDraw

from modeling.labels import ORIGINAL_CODES
from modeling.model import build_model, save_model_folder

TINY_BACKBONE = "test_efficientnet"
TINY_SIZE_PX = 64


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
    torch.manual_seed(0)
    model = build_model(TINY_BACKBONE, num_classes=4, size_px=TINY_SIZE_PX, pretrained=False)
    # An untrained classifier calls every picture the same; this one does not.
    torch.nn.init.normal_(model.get_classifier().weight, std=0.5)
    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_model_folder(
        model,
        folder,
        codes=ORIGINAL_CODES,
        lesion={"package_version": "0", "run_id": "tiny", "dataset": "demo", "synthetic": True, "operating_points": []},
    )
    return folder


@pytest.fixture
def lesion_image() -> Image.Image:
    """A brown blot on skin, 160x120."""
    image = Image.new("RGB", (160, 120), (224, 176, 150))
    ImageDraw.Draw(image).ellipse((50, 30, 110, 90), fill=(96, 58, 40))
    return image

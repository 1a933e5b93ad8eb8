"""Shared by the tests of the Space: small models, synthetic photos, the page in a browser."""

import base64
import contextlib
import io
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import guard
import numpy as np
import serving
import static_space
import torch
import uvicorn
from answers import Photo
from PIL import Image

from modeling.abstention import AbstentionRule
from modeling.classifier import LesionClassifier
from modeling.data.demo import draw_lesion
from modeling.labels import REFERENCE_CODES
from modeling.model_folder import ONNX_NAME
from modeling.network import build_model, save_model_folder
from modeling.operating_points import OperatingPoint
from modeling.training.onnx_export import export_onnx
from support.ports import free_port

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# What keeps Debian's chromium from phoning home.
CHROMIUM_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    "--disable-sync",
)
MEL_95 = OperatingPoint("MEL@95", ("MEL",), 0.95, 0.1, 0.95, 0.62, 40, 100)
MEL_90 = OperatingPoint("MEL@90", ("MEL",), 0.90, 0.2, 0.90, 0.74, 40, 100)
MALIGNANT_95 = OperatingPoint("malignant@95", ("BCC", "MEL"), 0.95, 0.1, 0.95, 0.62, 60, 80)
MALIGNANT_90 = OperatingPoint("malignant@90", ("BCC", "MEL"), 0.90, 0.2, 0.90, 0.74, 60, 80)
POINTS = (MEL_90, MEL_95, MALIGNANT_90, MALIGNANT_95)


def drawings(folder: Path, codes: tuple[str, ...] = ("BCC", "BKL", "MEL", "NV")) -> list[Path]:
    """Draw one lesion of each diagnosis, 640x480, as JPEG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for code in codes:
        draw_lesion(np.random.default_rng(1), code, width_px=640, height_px=480).save(
            folder / f"drawn_{code}.jpg", quality=90
        )
    return [folder / f"drawn_{code}.jpg" for code in codes]


def make_model(
    folder: Path,
    *,
    abstains: bool = False,
    threshold: float | None = None,
    points: tuple[OperatingPoint, ...] = (MEL_95,),
    favours: str | None = None,
    class_priors: dict[str, float] | None = None,
    onnx: bool = False,
) -> Path:
    """Save a tiny network with random weights, operating points and an abstention rule.

    Args:
        folder: Where to.
        abstains: The rule always or never abstains.
        threshold: Of the rule, in place of that.
        points: Of the model.
        favours: Diagnosis that is the most probable whatever the photo.
        class_priors: Mix of the diagnoses in its dataset.
        onnx: Write the ONNX file too, as the engine in the browser needs it.
    """
    torch.manual_seed(3)
    model = build_model("test_efficientnet", num_classes=4, size_px=64, pretrained=False)
    if favours:
        with torch.no_grad():
            model.get_classifier().bias[REFERENCE_CODES.index(favours)] += 1.0
    rule = AbstentionRule(
        threshold=threshold if threshold is not None else -1e5 if abstains else 1e5,
        false_alarm_rate=0.05,
        residual_weight=1.0,
        length=1.0,
        centre=np.zeros(2 * model.num_features, np.float32),
        directions=np.eye(2 * model.num_features, dtype=np.float32)[:2],
    )
    lesion = {
        "package_version": "0",
        "run_id": "space",
        "dataset": "demo",
        "synthetic": True,
        "license": "cc-by-nc-4.0",
        "data_fingerprint": "f" * 64,
        "operating_points": points,
        "abstention": rule,
        "class_priors": class_priors,
    }
    if onnx:
        export_onnx(model.eval(), folder / ONNX_NAME)
    save_model_folder(model, folder, codes=REFERENCE_CODES, lesion=lesion)
    return folder


@contextlib.contextmanager
def served_static(model: Path, asked: list[str] | None = None) -> Iterator[str]:
    """Build the page that computes in the browser, serve it in this process, and give its address; note the paths asked for."""
    app = static_space.page_app(model)

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        if asked is not None and scope["type"] == "http":
            asked.append(scope["path"])
        await app(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(noting, port=free_port(), log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.config.port}"
    finally:
        server.should_exit = True
        thread.join(30)


@contextlib.contextmanager
def served(classifier: LesionClassifier) -> Iterator[str]:
    """Serve a model's page in this process, and give its address."""
    guard.REQUESTS_PER_MINUTE = 100_000
    demo = serving.launch(classifier, port=free_port())
    try:
        yield demo.local_url.rstrip("/")
    finally:
        demo.close(verbose=False)


def pixels_of(uri: str) -> np.ndarray:
    """Decode a data URI."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def zipped(path: Path, entries: dict[str, bytes]) -> Photo:
    """Write a zip archive, as somebody sent it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return Photo(str(path), path.name)


# ---- The page in a browser -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def visit(browser, url: str, *, width: int = 1280, height: int = 900, **options):
    """Open the page; at the end, it must have asked nobody else and reported no error."""
    context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True, **options)
    page = context.new_page()
    page.set_default_timeout(120_000)
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.requests = requests
    page.goto(url)
    page.wait_for_selector("#photos", state="attached")
    yield page
    context.close()
    # The test models have neither metrics nor examples, which the browser's console calls an error.
    assert [error for error in errors if "status of 404" not in error] == []
    here = url.partition("#")[0]
    assert [one for one in requests if not one.startswith((here, "data:", "blob:"))] == []


def choose(page, *files: str | Path, button: str = "#photos .choose") -> None:
    """Pick files as a person does: click the button, then choose in the dialogue."""
    with page.expect_file_chooser() as chooser:
        page.locator(button).click()
    chooser.value.set_files([str(file) for file in files])


def answered(page, *files: str | Path, button: str = "#photos .choose") -> str:
    """Choose photos, wait for the answer, and return its verdict."""
    if files:
        page.evaluate("document.querySelector('#verdict')?.removeAttribute('id')")
        choose(page, *files, button=button)
    page.wait_for_selector("#verdict")
    return text_of(page, "#verdict")


def text_of(page, selector: str) -> str:
    """Return the words that are shown, spaces and line breaks made one space."""
    return " ".join(page.locator(selector).first.inner_text().replace("\xa0", " ").split())

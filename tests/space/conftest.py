"""Fixtures of the Space's tests; what is more than a fixture is in support/space.py."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modeling.classifier import LesionClassifier
from stress.space_soak import SpaceServer
from support.space import CHROMIUM, CHROMIUM_FLAGS, Photo, drawings, make_model, served

outside: list[str] = []


def note_outside(event: str, arguments: tuple[object, ...]) -> None:
    """Note every address beyond this machine that anything in this process reaches for."""
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = str(arguments[1][0])
    elif event == "socket.getaddrinfo":
        host = str(arguments[0])
    else:
        return
    if not host.startswith("127.") and host not in ("localhost", "::1", "None", "0.0.0.0", ""):
        outside.append(host)


sys.addaudithook(note_outside)


@pytest.fixture(scope="session")
def reached_outside() -> list[str]:
    """Addresses beyond this machine that this process reached for."""
    return outside


@pytest.fixture(scope="session")
def lesions(tmp_path_factory) -> list[Path]:
    """Drawings of a BCC, a BKL, a MEL and a NV."""
    return drawings(tmp_path_factory.mktemp("lesions"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("space") / "model")


@pytest.fixture(scope="session")
def classifier(folder) -> LesionClassifier:
    return LesionClassifier.from_pretrained(folder)


@pytest.fixture(scope="module")
def url(classifier) -> Iterator[str]:
    with served(classifier) as address:
        yield address


@pytest.fixture(scope="module")
def server(folder) -> Iterator[SpaceServer]:
    with SpaceServer("--model", str(folder)) as server:
        yield server


@pytest.fixture(scope="session")
def ood_score() -> Callable[[LesionClassifier, str | Path], float]:
    """How different from the training data a model finds a photo."""

    def score(classifier: LesionClassifier, file: str | Path) -> float:
        outputs = classifier.engine.forward(classifier.preprocess(file)[None])
        return float(classifier.abstention.score(outputs.logits, outputs.features)[0])

    return score


@pytest.fixture
def photo(lesions) -> Photo:
    return Photo(str(lesions[0]), "lesion.jpg")


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()

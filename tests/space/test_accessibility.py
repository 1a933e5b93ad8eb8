"""axe-core on every view of the page, light and dark: no serious or critical finding."""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from modeling.classifier import LesionClassifier
from support.space import POINTS, answered, choose, make_model, served, served_static, visit

pytestmark = pytest.mark.slow

AXE = "axe-core@4.14.1"


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core, fetched once with npm."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "skin-lesion-tests"
    script = cache / "package" / "axe.min.js"
    if not script.is_file():
        if not shutil.which("npm"):
            pytest.skip("needs npm, which fetches axe-core")
        cache.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", "--silent", AXE], cwd=cache, capture_output=True, text=True, timeout=120
        )
        if packed.returncode:
            pytest.skip(f"npm could not fetch axe-core: {packed.stderr[-200:]}")
        with tarfile.open(cache / packed.stdout.split()[-1]) as archive:
            script.parent.mkdir(exist_ok=True)
            script.write_bytes(archive.extractfile("package/axe.min.js").read())
    return script.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("answering") / "model", points=POINTS, favours="NV", onnx=True)


@pytest.fixture(scope="module", params=["server", "browser"])
def answering(request, model):
    with served(LesionClassifier.from_pretrained(model)) if request.param == "server" else served_static(model) as url:
        yield url


@pytest.fixture(scope="module")
def abstaining(tmp_path_factory):
    model = make_model(tmp_path_factory.mktemp("abstaining") / "model", points=POINTS, abstains=True)
    with served(LesionClassifier.from_pretrained(model)) as url:
        yield url


def findings(page, axe: str) -> list[str]:
    """Return what axe finds serious or critical on what is shown now."""
    page.wait_for_timeout(300)
    if not page.evaluate("'axe' in window"):
        page.evaluate(axe)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    assert len(found["passes"]) > 10  # axe ran
    return [
        f"{rule['id']} ({rule['impact']}): {node['target']} {node['failureSummary']}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"][:5]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_any_view(browser, axe, answering, abstaining, lesions, scheme):
    with visit(browser, answering, color_scheme=scheme) as page:

        def check(view: str) -> None:
            for width in (1280, 390):
                page.set_viewport_size({"width": width, "height": 844})
                assert findings(page, axe) == [], (view, width)

        check("start")
        answered(page, lesions[0])
        page.locator("details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
        check("answered")
        page.click("#view-side")
        check("side by side")
        page.click("#new-lesion")
        answered(page, lesions[1])
        page.click("#compare-lesions")
        check("comparison")
        page.click("#tab-batch")
        choose(page, *lesions[:2], button="#batch-files .choose")
        page.wait_for_selector("#save-csv")
        check("batch")
        page.locator(".batch .open").first.click()
        page.wait_for_selector("#row-back")
        check("row of a batch")
        for tab in ("model", "programs"):
            page.click(f"#tab-{tab}")
            check(tab)
    with visit(browser, abstaining, color_scheme=scheme) as page:
        answered(page, lesions[0])
        assert findings(page, axe) == [], "abstained"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_keyboard_alone_reaches_an_answer_and_its_focus_can_be_seen(browser, answering, lesions, scheme):
    with visit(browser, answering, color_scheme=scheme) as page:
        # Playwright takes over file dialogues without waiting; a key pressed at once would open the system's own.
        page.on("filechooser", lambda _: None)
        page.wait_for_timeout(500)
        page.locator("#tab-lesion").focus()
        page.keyboard.press("Tab")
        style = page.evaluate(
            "(({ outlineStyle, outlineWidth }) => [outlineStyle, outlineWidth])(getComputedStyle(document.activeElement))"
        )
        assert style == ["solid", "3px"]
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")  # on "Choose files"
        chooser.value.set_files(str(lesions[0]))
        page.wait_for_selector("#verdict")
        assert page.evaluate("document.activeElement.id") == "verdict"
        reached = set()
        for _ in range(25):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id"))
        assert {
            "new-lesion",
            "add-photo",
            "which-map",
            "view-side",
            "handle",
            "frame",
            "zoom-in",
            "save-report",
        } <= reached

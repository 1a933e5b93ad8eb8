"""axe-core on every view of the page, light and dark: no serious or critical finding."""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from modeling.classifier import LesionClassifier
from support.space import POINTS, answered, choose, make_model, served, visit

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
            archive.extract("package/axe.min.js", cache, filter="data")
    return script.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    model = make_model(tmp_path_factory.mktemp("answering") / "model", points=POINTS, favours="NV")
    with served(LesionClassifier.from_pretrained(model)) as url:
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
    assert len(found["passes"]) > 10  # it looked at something
    return [
        f"{rule['id']} ({rule['impact']}): {node['target']} {node['failureSummary']}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"][:5]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious(browser, axe, answering, abstaining, lesions, scheme, width):
    with visit(browser, answering, color_scheme=scheme, width=width) as page:
        assert findings(page, axe) == [], "empty"
        choose(page, lesions[0])
        answered(page)
        page.locator("#answer details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
        assert findings(page, axe) == [], "answered"
        page.get_by_role("tab", name="Batch").click()
        choose(page, *lesions[:2], field="#batch-files")
        page.wait_for_selector("#save-csv")
        assert findings(page, axe) == [], "batch"
        for tab in ("Model", "API"):
            page.get_by_role("tab", name=tab).click()
            assert findings(page, axe) == [], tab
    with visit(browser, abstaining, color_scheme=scheme, width=width) as page:
        choose(page, lesions[0])
        answered(page)
        assert findings(page, axe) == [], "abstained"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_keyboard_s_focus_can_be_seen(browser, answering, scheme):
    with visit(browser, answering, color_scheme=scheme) as page:
        page.get_by_role("tab", name="One lesion").focus()
        for _ in range(2):
            page.keyboard.press("Tab")
            shown = page.evaluate(
                """() => { const node = document.activeElement.shadowRoot?.activeElement ?? document.activeElement;
                    const style = getComputedStyle(node); return [node.textContent, style.outlineStyle, style.outlineWidth]; }"""
            )
            assert shown[1:] == ["solid", "3px"], shown

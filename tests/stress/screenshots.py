"""Make README's pictures from the model's examples: an answered page, wide and narrow, a batch and the model tab.

python tests/stress/screenshots.py --model runs/demo/model        # writes docs/*.png; needs Debian's chromium
"""

import argparse
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "space")]

from modeling.classifier import LesionClassifier
from support.space import CHROMIUM, CHROMIUM_FLAGS, ROOT, answered, choose, drawings, served


def main() -> int:
    """Start the page, drive it, and save what it looks like."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/demo/model", help="model folder or Hub repository")
    parser.add_argument("--photos", type=Path, nargs="+", help="in place of drawn lesions; the first is explained")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        served(LesionClassifier.from_pretrained(options.model)) as address,
        sync_playwright() as playwright,
    ):
        photos = options.photos or drawings(Path(scratch), ("MEL", "NV", "BCC", "BKL"))
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
        for scheme in ("light", "dark"):
            ending = "" if scheme == "light" else "-dark"
            page = browser.new_page(viewport={"width": 1280, "height": 1180}, color_scheme=scheme)
            phone = browser.new_page(
                viewport={"width": 390, "height": 844},
                device_scale_factor=2,
                color_scheme=scheme,
                has_touch=True,
                is_mobile=True,
            )
            for view, name in ((page, "space"), (phone, "space-phone")):
                answer(view, address, photos[0])
                view.screenshot(path=options.output_dir / f"{name}{ending}.png", full_page=view is page)
            page.get_by_role("tab", name="Batch").click()
            choose(page, *photos, field="#batch-files")
            page.wait_for_selector("#save-csv")
            page.screenshot(path=options.output_dir / f"space-batch{ending}.png")
            page.get_by_role("tab", name="Model").click()
            page.wait_for_selector("#card figure, #no-card")
            page.wait_for_timeout(500)  # figures are decoded
            page.screenshot(path=options.output_dir / f"space-model{ending}.png", full_page=True)
        browser.close()
    print("\n".join(str(file) for file in sorted(options.output_dir.glob("space*.png"))))
    return 0


def answer(page: Page, address: str, photo: Path) -> None:
    """Open the page and let it answer."""
    page.goto(address)
    page.wait_for_selector("#photos")
    choose(page, photo)
    answered(page)
    page.wait_for_timeout(1000)  # scrolled and painted


if __name__ == "__main__":
    sys.exit(main())

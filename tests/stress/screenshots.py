"""Make README's pictures from drawn images: an answered page, wide and narrow, a batch and the model tab.

python tests/stress/screenshots.py --model runs/demo/model        # writes docs/*.png; needs Debian's chromium
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[2] / "space"))

import app

from modeling.classifier import LesionClassifier

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "space" / "examples").glob("*.jpg"))
CHROMIUM = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


def main() -> int:
    """Start the page, drive it, and save what it looks like."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/demo/model", help="model folder or Hub repository")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    demo = app.build_demo(LesionClassifier.from_pretrained(options.model))
    address = app.launch(demo, prevent_thread_lock=True, quiet=True)
    with sync_playwright() as playwright:
        executable = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=executable, args=[*CHROMIUM, "--disable-sync"])
        page = browser.new_page(viewport={"width": 1280, "height": 1180})
        answer(page, address)
        page.screenshot(path=options.output_dir / "space.png")
        page.get_by_role("tab", name="Batch").click()
        page.set_input_files("#batch-files input[type=file]", [str(file) for file in EXAMPLES])
        page.wait_for_selector("#save-csv")
        page.screenshot(path=options.output_dir / "space-batch.png", full_page=True)
        page.get_by_role("tab", name="Model").click()
        page.wait_for_selector("#card figure, #no-card")
        page.wait_for_timeout(500)  # figures are decoded
        page.screenshot(path=options.output_dir / "space-model.png", full_page=True)
        phone = browser.new_page(viewport={"width": 390, "height": 844}, device_scale_factor=2, color_scheme="dark")
        answer(phone, address)
        phone.screenshot(path=options.output_dir / "space-phone.png")
        browser.close()
    demo.close(verbose=False)
    print("\n".join(str(file) for file in sorted(options.output_dir.glob("space*.png"))))
    return 0


def answer(page: Page, address: str) -> None:
    """Open the page and let it answer for the drawn melanoma."""
    page.goto(address)
    index = next(number for number, file in enumerate(EXAMPLES) if file.stem.endswith("MEL"))
    page.locator("#examples button").nth(index).click()
    page.wait_for_selector("#save-report")
    page.wait_for_timeout(1000)  # scrolled and painted


if __name__ == "__main__":
    sys.exit(main())

"""Make README's pictures from today's page; tests/test_readme.py fails when the page has changed since.

python tests/stress/screenshots.py --demo runs/demo/model        # writes docs/space*.png; needs Debian's chromium
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
PICTURES = ROOT / "docs" / "pictures.json"
SOURCES = ("space/page/*.js", "space/page/*.css", "space/page/*.html", "modeling/texts.json", "modeling/labels.py")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def main() -> int:
    """Start the page on two models, drive it, and save what it looks like."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--demo", type=Path, required=True, help="model folder of the demo, whose synthetic lesion is shown"
    )
    parser.add_argument("--output_dir", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    from modeling.model_folder import released_model

    options.output_dir.mkdir(parents=True, exist_ok=True)
    photo = next((options.demo / "examples").glob("*MEL*.jpg"), None) or next((options.demo / "examples").glob("*.jpg"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        with served(options.demo) as address:
            for name, width, height in (("space", 1280, 1000), ("space-phone", 390, 844)):
                page = browser.new_page(viewport={"width": width, "height": height})
                page.goto(address)
                page.locator("input[type=file]").first.set_input_files(photo)
                page.get_by_text("Most likely:").first.wait_for()
                page.wait_for_timeout(1500)
                page.screenshot(path=options.output_dir / f"{name}.png")
        with served(released_model()) as address:
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            page.goto(address)
            page.get_by_role("tab", name="Model").click()
            page.locator("figure img").first.wait_for()
            page.wait_for_timeout(1500)
            page.screenshot(path=options.output_dir / "space-model.png")
        browser.close()
    (options.output_dir / PICTURES.name).write_text(json.dumps({"page": page_hash()}) + "\n", encoding="utf-8")
    return 0


def page_hash() -> str:
    """Return a hash of the files that the look of the page depends on."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES for path in ROOT.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@contextmanager
def served(model: Path) -> Iterator[str]:
    """Serve the page of a model; yield its address."""
    from support.ports import free_port

    port = free_port()
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, ROOT / "space" / "app.py", "--model", model, "--port", str(port)]
        server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}/", server)
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()
            server.wait(30)


def wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until the page answers."""
    for _ in range(600):
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.2)
    raise RuntimeError("the page did not start")


if __name__ == "__main__":
    sys.exit(main())

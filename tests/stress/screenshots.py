"""Make README's pictures from today's page; tests/test_readme.py fails when the page has changed since.

python tests/stress/screenshots.py --demo runs/demo/model            # writes docs/space*.png; needs Debian's chromium
python tests/stress/screenshots.py --demo runs/demo/model --check    # changes nothing; 1 if docs/ shows another page
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

from PIL import Image, ImageChops, ImageStat

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
DOCS = ROOT / "docs"
PICTURES = DOCS / "pictures.json"
MAX_DIFFERENCE = 4  # mean of a channel, of 255
SOURCES = ("space/page/*.js", "space/page/*.css", "space/page/*.html", "modeling/texts.json", "modeling/labels.py")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def main() -> int:
    """Write the pictures, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--demo", type=Path, required=True, help="model folder of the demo, whose synthetic lesion is shown"
    )
    parser.add_argument("--check", action="store_true", help="compare with docs/ instead of writing there")
    options = parser.parse_args()
    if not options.check:
        take_pictures(options.demo, DOCS)
        (DOCS / PICTURES.name).write_text(json.dumps({"page": page_hash()}) + "\n", encoding="utf-8")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        take_pictures(options.demo, Path(folder))
        changed = [picture.name for picture in sorted(Path(folder).glob("*.png")) if differs(picture)]
    print(f"not as in docs/: {', '.join(changed) or 'none'}")
    return int(bool(changed))


def differs(picture: Path) -> bool:
    """Return whether a picture is not that of the same name in docs/, but for how fonts are drawn."""
    with Image.open(picture) as now, Image.open(DOCS / picture.name) as before:
        if now.size != before.size:
            return True
        mean = ImageStat.Stat(ImageChops.difference(now.convert("RGB"), before.convert("RGB"))).mean
    return max(mean) > MAX_DIFFERENCE


def take_pictures(demo: Path, folder: Path) -> None:
    """Start the page on the demo, drive it, and save what it looks like."""
    from playwright.sync_api import sync_playwright

    photo = next((demo / "examples").glob("*MEL*.jpg"), None) or next((demo / "examples").glob("*.jpg"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        with served(demo) as address:
            for name, width, height in (("space", 1280, 1000), ("space-phone", 390, 844)):
                page = browser.new_page(viewport={"width": width, "height": height})
                page.goto(address)
                page.locator("input[type=file]").first.set_input_files(photo)
                page.get_by_text("Most likely:").first.wait_for()
                page.wait_for_timeout(1500)
                page.screenshot(path=folder / f"{name}.png")
        browser.close()


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

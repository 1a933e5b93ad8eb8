"""The page that computes in the browser: what it loads, how long a photo takes, and a batch of 200 photos.

python benchmarks/browser.py FOLDER_OF_PHOTOS                             # the released model
python benchmarks/browser.py FOLDER_OF_PHOTOS --backbone efficientnet_b0   # bar 120 ms
"""

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch is loaded, see side_by_side.py

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright
from side_by_side import Row, make_model, show, write

from modeling.images import IMAGE_SUFFIXES
from modeling.model_folder import released_model

ROOT = Path(__file__).parents[1]
PORT = 7931
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-sync",
    "--disable-component-update",
]
PHOTOS = 200
TIME_PHOTOS = """async (files) => {
  const { open } = await import("/engine_browser.js");
  const engine = await open("/model/");
  const times = [];
  for (const file of document.querySelector("#probe").files) times.push((await engine.outputs(file)).milliseconds);
  engine.close();
  return times;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, help="folder with photographs, searched at any depth")
    parser.add_argument("--backbone", help="measure a network of random weights at 224 px. Default: the released model")
    options = parser.parse_args()
    files = [file for file in sorted(options.photos.rglob("*")) if file.suffix.lower() in IMAGE_SUFFIXES]
    files = files[:: max(len(files) // PHOTOS, 1)][:PHOTOS]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        model = make_model(Path(folder), options.backbone, 224) if options.backbone else released_model()
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=[*FLAGS, "--enable-precise-memory-info"]
        )
        with served(Path(model)) as url:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(url)
            page.wait_for_selector("#photos .choose")
            rows = [loaded(url), one_by_one(page, files[:40], 120 if options.backbone else 80), *batch(page, files)]
        browser.close()
    name = "browser" if options.backbone is None else f"browser_{options.backbone}"
    content = {"model": options.backbone or Path(model).name, "photos": len(files)}
    write(name, content, {f"{what} {bar}": met for what, _, bar, met in rows if bar}, rows=rows)


@contextmanager
def served(model: Path) -> Iterator[str]:
    """Serve the static page, and wait until it answers."""
    command = [sys.executable, "space/app.py", "--static", "--model", str(model), "--port", str(PORT)]
    server = subprocess.Popen(command, cwd=ROOT)
    url = f"http://127.0.0.1:{PORT}/"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(url).close()
                break
            except OSError:
                time.sleep(1)
        yield url
    finally:
        server.terminate()
        server.wait()


def loaded(url: str) -> Row:
    """Return the size of the two large files as a host sends them, compressed."""
    sizes = []
    for path in ("ort-wasm-simd-threaded.wasm", "model/onnx/model.onnx"):
        with urllib.request.urlopen(url + path) as answer:
            sizes.append(
                len(subprocess.run(["gzip", "-c"], input=answer.read(), capture_output=True, check=True).stdout)
            )
    total = sum(sizes) / 1e6
    return "runtime and model to load, gzip", f"{total:.1f} MB", "at most 17 MB", total <= 17


def one_by_one(page: Page, files: list[Path], bar_ms: int) -> Row:
    """Time the network on single photos, from pixels to its outputs, decoding apart."""
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('input'), {type: 'file', id: 'probe', multiple: true}))"
    )
    page.locator("#probe").set_input_files([str(file) for file in files])
    times: list[dict[str, float]] = page.evaluate(TIME_PHOTOS)
    page.evaluate("document.querySelector('#probe').remove()")
    values = {name: [each[name] for each in times[1:]] for name in ("decode", "network")}  # the first one warms up
    show(values, "ms")
    network = statistics.median(values["network"])
    return "from pixels to outputs, median", f"{network:.0f} ms", f"at most {bar_ms} ms", network <= bar_ms


def batch(page: Page, files: list[Path]) -> list[Row]:
    """Put all photos into a batch; watch the main thread and its memory."""
    browser: Any = page.context.browser
    page.click("#tab-batch")
    with page.expect_file_chooser() as chooser:
        page.click("#batch-files .choose")
    browser.start_tracing(page=page, categories=["toplevel"])
    started, heap = time.monotonic(), []
    chooser.value.set_files([str(file) for file in files])
    while not page.locator("#save-csv").count():
        heap.append(page.evaluate("performance.memory.usedJSHeapSize") / 1e6)
        page.wait_for_timeout(500)
    seconds = time.monotonic() - started
    page.wait_for_timeout(2000)  # the table is drawn in parts
    assert page.locator(".batch tbody tr").count() == len(files)
    whole, computing = longest_task(json.loads(browser.stop_tracing())["traceEvents"])
    return [
        (f"batch of {len(files)} photos", f"{seconds:.0f} s", "", None),
        (
            "… longest task of the page's own thread (of it computing)",
            f"{whole:.0f} ms ({computing:.0f} ms)",
            "at most 50 ms",
            whole <= 50,
        ),
        ("… memory of that thread, first and last", f"{heap[0]:.0f} and {heap[-1]:.0f} MB", "", None),
    ]


def longest_task(events: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the longest task of a page's main thread, and the longest time that one computed, in ms."""
    names = [event for event in events if event["name"] == "thread_name"]
    main = {(each["pid"], each["tid"]) for each in names if each["args"]["name"] == "CrRendererMain"}
    tasks = [each for each in events if each["name"].endswith("RunTask") and (each["pid"], each["tid"]) in main]
    return max(each.get("dur", 0) for each in tasks) / 1000, max(each.get("tdur", 0) for each in tasks) / 1000


if __name__ == "__main__":
    main()

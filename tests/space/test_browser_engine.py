"""The engine in the browser against Python's, in a real Chromium: pixels, numbers, words, and what it never sends."""

import base64
import contextlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import static_space
from answers import Photo, answer_lesion
from PIL import Image
from starlette.responses import Response

from modeling.classifier import LesionClassifier
from modeling.files import ModelFolderError
from modeling.model_folder import released_model
from support.corpus import make_corpus
from support.space import POINTS, answered, drawings, make_model, pixels_of, served_static, text_of, visit

pytestmark = pytest.mark.slow

MIX = {"BCC": 0.05, "BKL": 0.10, "MEL": 0.15, "NV": 0.70}
N_PHOTOS = int(os.environ.get("LESION_TEST_BROWSER_PHOTOS", "40"))
# The page's own modules are imported into the page, whose policy allows them.
OPEN = """async () => {
  const { open } = await import("/engine_browser.js");
  window.engine = await open("model/", { origin: await (await fetch("page.json")).json() });
  const input = document.createElement("input");
  input.type = "file";
  input.multiple = true;
  input.id = "probe";
  document.body.append(input);
}"""
ANSWERS = """async (priors) => {
  const results = [];
  for (const file of document.querySelector("#probe").files) {
    const one = { name: file.name };
    try {
      const { logits, size } = await engine.outputs(file);
      one.logits = Array.from(logits);
      one.answer = await engine.answer([{ name: file.name, blob: file }], { priors });
    } catch (error) {
      one.error = error.message;
    }
    results.push(one);
  }
  return results;
}"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The released model of this clone; a tiny one where there is none."""
    try:
        return Path(released_model())
    except ModelFolderError:
        folder = tmp_path_factory.mktemp("browser") / "model"
        return make_model(folder, points=POINTS, class_priors=MIX, onnx=True)


@pytest.fixture(scope="module")
def python(model) -> LesionClassifier:
    return LesionClassifier.from_pretrained(model, engine="onnx")


@pytest.fixture(scope="module")
def engine(browser, model) -> Iterator[Any]:
    """A page with an open engine, `window.engine`, and a field for files."""
    with served_static(model) as url:
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.goto(url)
        page.wait_for_selector("#photos")
        page.evaluate(OPEN)
        yield page
        page.close()


def browser_answers(page, files: list[Path], priors: Any = "equal") -> list[dict[str, Any]]:
    page.locator("#probe").set_input_files([str(file) for file in files])
    return page.evaluate(ANSWERS, priors)


def difference(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Return where two answers differ, key by key; numbers may by the last digits."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = [f"{where}.{key} only in one" for key in ours.keys() ^ theirs.keys()]
        return found + [
            line for key in ours.keys() & theirs.keys() for line in difference(ours[key], theirs[key], f"{where}.{key}")
        ]
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        if len(ours) != len(theirs):
            return [f"{where}: {len(ours)} and {len(theirs)} entries"]
        return [
            line for i, pair in enumerate(zip(ours, theirs, strict=True)) for line in difference(*pair, f"{where}[{i}]")
        ]
    if isinstance(ours, float) or isinstance(theirs, float):
        return [] if abs(ours - theirs) <= 1e-3 * max(1.0, abs(ours)) else [f"{where}: {ours} and {theirs}"]
    return [] if ours == theirs else [f"{where}: {ours!r} and {theirs!r}"]


def without_date(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key != "date"}


# ---- Pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height", "side"), [(600, 450, 224), (37, 91, 64), (64, 200, 64), (1023, 769, 96)])
@pytest.mark.parametrize("kind", ["bicubic", "bilinear"])
def test_resizing_gives_pillow_s_pixels(engine, width, height, side, kind):
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    rgba = np.dstack([pixels, np.full((height, width), 255, np.uint8)])
    resized = engine.evaluate(
        """async ([base64, width, height, side, kind]) => {
          const { BandResizer } = await import("/resize.js");
          const rgba = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
          const resizer = new BandResizer(width, height, side, kind);
          for (let from = 0; from < height; from += 50) {
            const rows = Math.min(50, height - from);
            resizer.add(rgba.subarray(4 * width * from, 4 * width * (from + rows)), from, rows);
          }
          return Array.from(resizer.result());
        }""",
        [base64.b64encode(rgba.tobytes()).decode(), width, height, side, kind],
    )
    by_pillow = Image.fromarray(pixels).resize((side, side), Image.Resampling[kind.upper()])
    assert np.array_equal(np.array(resized, np.uint8).reshape(side, side, 3), np.asarray(by_pillow))


# ---- Answers ---------------------------------------------------------------------------------------------------------


def sample_of(real_data: Path, n: int) -> list[Path]:
    """Photographs of three processing chains, as many of each."""
    folders = (
        real_data / "originals",
        real_data / "isic2019" / "ISIC_2019_Training_Input",
        real_data / "isic2019_msk" / "ISIC_2019_Training_Input",
    )
    files = [sorted(folder.glob("*.jpg")) for folder in folders]
    return [file for some in files for file in some[:: max(1, len(some) // (n // 3))][: n // 3]]


def test_png_photographs_get_the_same_answer_in_every_field(engine, python, real_data, tmp_path):
    files = []
    for photo in sample_of(real_data, N_PHOTOS // 2):
        with Image.open(photo) as image:
            files.append(tmp_path / f"{photo.stem}.png")
            image.convert("RGB").save(files[-1], compress_level=1)
    check_equal(engine, python, files)


def test_drawings_get_the_same_answer_in_every_field_at_both_priors(engine, python, tmp_path):
    files = drawings(tmp_path)
    check_equal(engine, python, files)
    if python.class_priors:
        check_equal(engine, python, files, "dataset")


def test_priors_that_the_browser_does_not_know_are_refused(engine, tmp_path):
    (result,) = browser_answers(engine, drawings(tmp_path)[:1], {"MEL": 9, "NV": 1})
    assert result["error"] == 'priors must be "equal" or "dataset".'


def test_an_archive_that_lies_about_its_entries_and_a_folder_get_a_sentence(engine, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jpg", b"x")
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.rindex(b"PK\x01\x02") + 28 : data.rindex(b"PK\x01\x02") + 30] = b"\xff\xff"  # the length of its name
    (tmp_path / "a.zip").write_bytes(data)
    engine.locator("#probe").set_input_files(tmp_path / "a.zip")
    said = engine.evaluate(
        """async () => {
          const { isZip, unzip } = await import("/zip.js");
          const folder = { name: "photos", slice: () => ({ arrayBuffer: async () => { throw new Error("x"); } }) };
          const told = (error) => error.message;
          return [await unzip(document.querySelector("#probe").files[0]).catch(told), await isZip(folder).catch(told)];
        }"""
    )
    assert said == [
        "a.zip is a damaged zip archive; pack it again.",
        "photos cannot be read. If it is a folder, choose the photos in it.",
    ]


def check_equal(engine, python: LesionClassifier, files: list[Path], priors: str = "equal") -> None:
    for file, result in zip(files, browser_answers(engine, files, priors), strict=True):
        outputs = python.engine.forward(python.preprocess(file)[None])
        assert np.abs(np.array(result["logits"]) - outputs.logits[0]).max() < 1e-3, file.name
        ours = answer_lesion(python, [Photo(str(file), file.name)], priors=priors)
        assert difference(without_date(ours), without_date(result["answer"])) == [], file.name


def test_jpeg_photographs_get_the_same_answer(engine, python, real_data):
    files = sample_of(real_data, N_PHOTOS // 2)
    agree = []
    for file, result in zip(files, browser_answers(engine, files), strict=True):
        prediction, answer = python.predict(file), result["answer"]
        agree.append(
            (answer["diagnosis"], answer["flagged"], answer["abstained"])
            == (prediction.diagnosis, list(prediction.flagged), prediction.abstained)
        )
        ours, theirs = prediction.probabilities, answer["probabilities"]
        assert max(abs(ours[code] - theirs[code]) for code in ours) <= 0.01, file.name
    assert np.mean(agree) >= 0.99


def test_heat_maps_are_python_s(engine, python, tmp_path):
    for file in drawings(tmp_path, ("MEL", "NV")):
        explanation = python.explain(file)
        for code in python.codes:
            page = engine.evaluate(
                """async ([answer, code]) => {
                  const { heatOf } = await import("/heatmap.js");
                  const { width, height, heat } = heatOf(answer.photos[0], code);
                  return { width, height, heat: Array.from(heat) };
                }""",
                [browser_answers(engine, [file])[0]["answer"], code],
            )
            ours = explanation.heat_map(code, size=(page["height"], page["width"]))
            theirs = np.array(page["heat"]).reshape(ours.shape)
            assert (
                np.abs(ours - theirs).max() < 0.03
            )  # evidence is rounded to four digits, and a tiny network's is small
            if ours.std() > 1e-3:
                assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] >= 0.999


def test_a_blob_alone_is_enough(engine, python, lesions):
    engine.locator("#probe").set_input_files(str(lesions[0]))
    verdict = engine.evaluate("async () => (await engine.answer(document.querySelector('#probe').files[0])).verdict")
    assert verdict == python.predict(lesions[0]).verdict


def test_transparent_pixels_are_white_in_thumbnails_and_pictures(engine, tmp_path):
    Image.new("RGBA", (40, 30)).save(tmp_path / "clear.png")
    engine.locator("#probe").set_input_files(tmp_path / "clear.png")
    pictures = engine.evaluate(
        """async () => {
          const [file] = document.querySelector("#probe").files;
          const { flatten } = await import("/heatmap.js");
          const picture = flatten([[await createImageBitmap(file), 1]], [30, 40], 100);
          return [(await engine.outputs(file)).thumbnail, picture.toDataURL("image/jpeg")];
        }"""
    )
    assert [pixels_of(picture).min() for picture in pictures] == [255, 255]


def test_a_browser_that_falsifies_pixels_is_refused(engine, lesions):
    engine.locator("#probe").set_input_files(lesions[0])
    said = engine.evaluate(
        """async () => {
          const { prototype } = OffscreenCanvasRenderingContext2D;
          const { getImageData } = prototype;
          prototype.getImageData = function (...box) {
            const image = getImageData.apply(this, box);
            image.data[4000] ^= 1;
            return image;
          };
          const { readSquare } = await import("/decode.js");
          const told = (error) => error.message;
          const [file] = document.querySelector("#probe").files;
          const square = await readSquare(file, "a.jpg", { side: 64, kind: "bicubic" }).catch(told);
          prototype.getImageData = getImageData;
          return square;
        }"""
    )
    assert "changes the pixels that a page reads" in said


def test_no_photo_and_numbers_that_are_not_finite_get_a_sentence(engine):
    assert engine.evaluate("engine.answer([]).catch((error) => error.message)") == "No photo was received."
    said = engine.evaluate(
        """async () => {
          const { readOutputs } = await import("/prediction.js");
          try {
            return readOutputs({ codes: ["MEL", "NV"], abstention: null }, { logits: [NaN, 0], features: [1], grid: [0, 0] });
          } catch (error) {
            return error.message;
          }
        }"""
    )
    assert "not finite" in said


def test_every_odd_file_gets_a_sentence_or_an_answer(engine, lesions, tmp_path):
    corpus = make_corpus(tmp_path)
    (tmp_path / "broken.avif").write_bytes(b"\0\0\0\x1cftypavif" + bytes(100))
    files = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    results = browser_answers(engine, files)
    assert len(results) >= len(corpus)
    for result in results:
        assert "answer" in result or (len(result["error"]) > 20 and result["error"].endswith((".", ")"))), result
        assert "undefined" not in str(result.get("error"))
        assert ("an AVIF image" in str(result.get("error"))) == (result["name"] == "broken.avif")
    assert "answer" in browser_answers(engine, [lesions[0]])[0]  # it goes on


# ---- What leaves the device, and what works without a network -----------------------------------------------------------


def test_answers_reports_and_batches_send_nothing(browser, model, lesions, tmp_path):
    requests: list[str] = []
    with served_static(model, requests) as url, visit(browser, url) as page:
        page.evaluate("navigator.serviceWorker.ready.then(() => 1)")
        page.wait_for_timeout(500)
        assert "/model/onnx/model.onnx" in requests
        at_server, at_page = len(requests), len(page.requests)
        answered(page, lesions[0])
        with page.expect_download() as download:
            page.click("#save-report")
        download.value.save_as(tmp_path / "report.html")
        page.click("#tab-batch")
        with page.expect_file_chooser() as chooser:
            page.click("#batch-files .choose")
        chooser.value.set_files([str(file) for file in lesions])
        page.wait_for_selector("#save-csv")
        # The browser asks for the tab's icon when it likes.
        assert [path for path in requests[at_server:] if path != "/icon.svg"] == []
        sent = [one for one in page.requests[at_page:] if not one.startswith(("data:", "blob:"))]
        assert [one for one in sent if not one.endswith("/icon.svg")] == []
        assert "sends nothing" in text_of(page, "footer")


def test_the_policy_refuses_every_other_host_in_page_and_worker(browser, model):
    with served_static(model) as url:
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("#photos")
        refused = page.evaluate(
            """async () => {
              const probe = `self.addEventListener("securitypolicyviolation", (event) => postMessage(event.blockedURI));
                fetch("http://127.0.0.2:9/").catch(() => {});`;
              const violations = [];
              document.addEventListener("securitypolicyviolation", (event) => violations.push(event.blockedURI));
              await fetch("http://127.0.0.2:9/").catch(() => {});
              const address = URL.createObjectURL(new Blob([probe], { type: "text/javascript" }));
              const worker = new Worker(address, { type: "module" }); // as engine_browser.js starts its own
              violations.push(await new Promise((resolve) => (worker.onmessage = ({ data }) => resolve(data))));
              return violations;
            }"""
        )
        page.close()
        assert len(refused) == 2
        assert all("127.0.0.2" in one for one in refused)


@pytest.mark.parametrize("path", ["/", "/index.html"])  # of which some hosts know the second alone
def test_after_the_first_visit_the_page_works_without_a_server(browser, model, lesions, monkeypatch, path):
    app = static_space.page_app(model)
    is_down = False

    async def host(scope: Any, receive: Any, send: Any) -> None:
        lost = scope["type"] == "http" and (is_down or (scope["path"] == "/" != path))
        await (Response(status_code=503 if is_down else 404) if lost else app)(scope, receive, send)

    monkeypatch.setattr(static_space, "page_app", lambda model: host)
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(120_000)
    with served_static(model) as url:
        page.goto(url + path)
        page.wait_for_selector("#photos")
        ready = "Promise.race([navigator.serviceWorker.ready, new Promise((_, no) => setTimeout(no, 30000, 'not installed'))])"
        page.evaluate(f"{ready}.then(() => 1)")
        is_down = True
        page.reload()
        page.wait_for_selector("#photos")
    page.reload()
    page.wait_for_selector("#photos")
    assert answered(page, lesions[0])
    context.close()


def test_a_host_that_is_out_of_order_neither_stops_the_page_nor_spoils_what_it_keeps(browser, model):
    with served_static(model) as url:
        context = browser.new_context(service_workers="block")  # so that its requests can be answered here
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(url)
        wrong = {"status": 200, "content_type": "text/html", "body": "<p>Sign in</p>"}

        page.wait_for_selector("#photos")
        assert visit_with(page, "config.json", {"status": 503}) == "works"
        assert visit_with(page, "config.json", {"status": 429}) == "works"
        assert "config.json is damaged: it is not JSON" in visit_with(page, "config.json", wrong)
        assert visit_with(page, "config.json", {"status": 503}) == "works"  # the good copy is still there
        for file in ("labels.json", "page.json"):
            assert "A file of this page is missing" in visit_with(page, file, {"status": 404})
        throws = 'export function mount(host) { host.append("half"); throw new Error("It broke."); }'
        said = visit_with(page, "page.js", {"content_type": "text/javascript", "body": throws})
        assert said == "The model could not be loaded It broke."
        assert page.evaluate("caches.delete('lesion-model-/')")
        assert "could not run the model" in visit_with(page, "*.wasm", wrong)
        page.reload()  # the damaged runtime was not kept
        page.wait_for_selector("#photos")
        page.evaluate(OPEN)
        page.evaluate("engine.close()")
        assert "was closed" in page.evaluate(
            "engine.outputs(new Blob(['x'])).then(() => 'answered', (error) => error.message)"
        )
        breaks = """async () => {
          const { load } = await import("/store.js");
          const body = new ReadableStream({ start: (stream) => stream.error(new TypeError("network error")) });
          window.fetch = async () => new Response(body);
          return load("https://models.example/model.onnx", { onProgress() {} }).catch((error) => error.message);
        }"""
        assert "model.onnx could not be loaded: no connection to models.example" in page.evaluate(breaks)
        context.close()


def visit_with(page, file: str, reply: dict[str, Any]) -> str:
    """Load the page again, with another reply for a file; return what it says of a failure, or "works"."""
    page.route(f"**/{file}", lambda route: route.fulfill(**reply))
    page.reload()
    page.wait_for_selector("#photos, #failure")
    page.unroute(f"**/{file}")
    return text_of(page, "#failure") if page.locator("#failure").count() else "works"


def test_odd_examples_and_figures_of_a_model_do_not_stop_the_page(browser, tmp_path, lesions):
    folder = make_model(tmp_path / "model", onnx=True)
    (folder / "examples").mkdir()
    (folder / "examples" / "examples.json").write_text(
        '{"examples": [null, 3, {"file": "../a.jpg"}, {"file": "a.jpg"}]}'
    )
    (folder / "metrics.json").write_text('{"figures": {"a": 1}}')
    with served_static(folder) as url, visit(browser, url) as page:
        assert answered(page, lesions[0])
        assert page.locator(".sample").count() == 0


# ---- Models that cannot be used ----------------------------------------------------------------------------------------


def damage(folder: Path) -> None:
    file = folder / "onnx" / "model.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


def make_older(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["lesion"]["schema"] = 3
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (damage, "damaged"),
        (make_older, "of schema 3, and this page reads 4"),
        (lambda folder: (folder / "onnx" / "model.onnx").unlink(), "no onnx/model.onnx"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
    ],
)
def test_a_model_that_cannot_be_used_is_explained(browser, tmp_path, change, says):
    folder = make_model(tmp_path / "model", onnx=True)
    change(folder)
    with served_static(folder) as url:
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("#failure", timeout=120_000)
        assert says in text_of(page, "#failure")
        assert page.get_by_role("button", name="Try again").is_visible()
        page.close()


DAMAGED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("", {"label_names": None}),
    ("", {"pretrained_cfg": None}),
    ("pretrained_cfg", {"interpolation": "lanczos"}),
    ("pretrained_cfg", {"std": None}),
    ("lesion", {"operating_points": {}}),
    ("lesion", {"operating_points": [{"codes": ["XYZ"]}]}),
    ("lesion", {"class_priors": {"MEL": 1}}),
    ("lesion", {"abstention": {"centre": "?", "directions": ""}}),
    ("lesion", {"abstention": {"centre": "", "directions": "AAAA" * 4}}),
)


def test_a_damaged_config_json_is_called_so_and_no_error_of_the_language_is_shown(browser, model):
    config = json.loads((model / "config.json").read_text())
    with served_static(model) as url:
        context = browser.new_context(service_workers="block")
        page = context.new_page()
        page.goto(url)
        for part, change in DAMAGED:
            damaged = config | (change if not part else {part: config[part] | change})
            said = visit_with(page, "config.json", {"json": damaged})
            assert "config.json is damaged, or of another version: publish" in said, change
        context.close()


# ---- The static Space ----------------------------------------------------------------------------------------------------


def test_the_files_of_a_static_space_are_small_and_name_the_model_and_no_registry():
    files = static_space.static_files("me/skin-lesion-b0", "0" * 40)
    assert {"README.md", "index.html", "package.json", "package-lock.json", "build.mjs", "texts.json"} <= files.keys()
    assert max(map(len, files.values())) < 200_000
    assert b"app_file: dist/index.html" in files["README.md"]
    assert json.loads(files["page.json"])["model_url"].endswith(f"/me/skin-lesion-b0/resolve/{'0' * 40}/")
    lock = json.loads(files["package-lock.json"])
    assert lock["packages"]["node_modules/onnxruntime-web"]["version"] == "1.30.0"
    assert not any("resolved" in package for package in lock["packages"].values())


def test_the_build_allows_the_model_s_host_alone(tmp_path):
    files = static_space.static_files("me/m", "0" * 40)
    index = (static_space.build(files) / "index.html").read_text(encoding="utf-8")
    assert "connect-src 'self' https://huggingface.co https://*.huggingface.co https://*.hf.co;" in index
    assert "MODEL_HOST" not in index
    assert "If this stays, reload the page." in index  # where a script is missing


def test_a_build_that_fails_leaves_nothing_and_builds_side_by_side_do_not_disturb_each_other(monkeypatch, tmp_path):
    files = static_space.static_files("me/m", "0" * 40)
    built = static_space.build(files)
    [packages] = [folder for folder in built.parents[1].glob("npm-*") if (folder / "node_modules").is_dir()]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = tmp_path / "skin-lesion-classifier"
    shutil.copytree(packages, cache / packages.name)
    runtime = next((cache / packages.name).rglob("ort-wasm-simd-threaded.wasm"))
    runtime.rename(tmp_path / "hidden")
    with pytest.raises(static_space.BuildError, match="ort-wasm-simd-threaded"):
        static_space.build(files)
    assert not list(cache.glob("page-*/dist"))
    (tmp_path / "hidden").rename(runtime)
    with ThreadPoolExecutor(3) as pool:
        [folder] = set(pool.map(static_space.build, [files] * 3))
    assert {file.name for file in folder.iterdir()} == {file.name for file in built.iterdir()}
    assert "BUILD_ID" not in (folder / "sw.js").read_text()
    assert "RUNTIME_VERSION" not in (folder / "engine_browser.js").read_text()


def test_without_npm_a_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(static_space.BuildError, match=r"install Node\.js"):
        static_space.build(static_space.static_files("m", None, local=True))


def test_the_local_server_hands_out_no_other_file_of_the_model_and_no_link_out_of_it(tmp_path):
    folder = make_model(tmp_path / "model", onnx=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "figures").mkdir()
    (folder / "figures" / "roc.png").write_bytes(b"picture")
    (folder / "figures" / "link.png").symlink_to(tmp_path / "secret.png")
    with served_static(folder) as url, contextlib.closing(_connection(url)) as connection:
        connection.request("GET", "/model/figures/roc.png")
        assert connection.getresponse().read() == b"picture"
        for path in (
            "/model/model.safetensors",
            "/model/figures/link.png",
            "/model/figures/../../secret.png",
            "/model/figures/%2e%2e/config.json",
            "/model/",
        ):
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            assert response.status == 404, path


def _connection(url: str):
    from http.client import HTTPConnection

    return HTTPConnection(url.removeprefix("http://"))

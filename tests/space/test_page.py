"""The page in a real browser, as a visitor uses it, with each of its two engines: on a server, and in the browser."""

import base64
import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import guard
import pytest
from playwright.sync_api import expect

from modeling.classifier import LesionClassifier
from modeling.files import ROOT
from modeling.formatting import percent
from modeling.prediction import rounded
from modeling.rows import columns_of
from support.space import POINTS, answered, choose, make_model, served, served_static, text_of, visit, zipped

pytestmark = pytest.mark.slow

MIX = {"BCC": 0.05, "BKL": 0.10, "MEL": 0.15, "NV": 0.70}
LOW = tuple(replace(point, threshold=0.01) for point in POINTS)  # reached by every photo
HIGH = tuple(replace(point, threshold=0.99) for point in POINTS)  # reached by none
TABS = ("lesion", "batch", "model", "programs")
ENGINES = ("server", "browser")


@pytest.fixture(scope="module")
def picky(tmp_path_factory, lesions, ood_score) -> tuple[Path, list[Path]]:
    """A model that flags every photo as a probable nevus and abstains on one drawing alone; the drawings, that one first."""
    folder = tmp_path_factory.mktemp("picky")
    options = {"points": LOW, "favours": "NV", "class_priors": MIX, "onnx": True}
    easy = LesionClassifier.from_pretrained(make_model(folder / "easy", **options))
    scores = {file: ood_score(easy, file) for file in lesions}
    ordered = sorted(scores, key=scores.__getitem__, reverse=True)
    between = (scores[ordered[0]] + scores[ordered[1]]) / 2
    model = make_model(folder / "model", threshold=between, **options)
    (model / "examples").mkdir()
    shutil.copy(ordered[1], model / "examples" / "one.jpg")
    (model / "examples" / "examples.json").write_text('{"examples": [{"file": "one.jpg", "diagnosis": "NV"}]}')
    return model, ordered


@pytest.fixture(scope="module")
def expected(picky) -> LesionClassifier:
    return LesionClassifier.from_pretrained(picky[0])


@pytest.fixture(scope="module", params=ENGINES)
def page_url(request, picky, expected):
    """The page's address with one of its engines."""
    with served(expected) if request.param == "server" else served_static(picky[0]) as url:
        yield url


def saved(page, button: str, path: Path) -> Path:
    """Click a button that hands out a file, and keep it."""
    with page.expect_download() as download:
        page.locator(button).click()
    download.value.save_as(path)
    return path


def n_pages(pdf: bytes) -> int:
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


def focused(page) -> str:
    return page.evaluate("document.activeElement.id")


def inside(page, selector: str, height: int) -> bool:
    box = page.locator(selector).first.bounding_box()
    return box["y"] >= 0 and box["y"] + box["height"] <= height


# ---- Lesions ---------------------------------------------------------------------------------------------------------


def test_a_phone_s_first_screen_says_whether_for_what_how_sure_and_what_now(browser, page_url, picky, expected):
    _, (_, good, *_) = picky
    with visit(browser, page_url, width=390, height=844, has_touch=True, is_mobile=True) as page:
        verdict = answered(page, good)
        prediction = expected.predict(good)
        assert verdict == prediction.verdict
        assert verdict.startswith("Flagged: above the 95 %-sensitivity thresholds for melanoma and for malignancy.")
        assert focused(page) == "verdict"  # which a screen reader reads
        assert text_of(page, ".facts") == "Photo: usable"
        values = text_of(page, ".values")
        assert f"Melanoma {percent(rounded(prediction.probabilities['MEL']))}" in values
        assert "above threshold 1 %" in values
        assert "examined by a dermatologist" in text_of(page, ".now")
        for part in ("header .notice", "#verdict", ".values", ".facts", ".now"):
            assert inside(page, part, 844), part
        assert page.locator("#which-map").input_value() == expected.explain(good).shown_code
        assert "not_known" not in text_of(page, "main")
        assert "squamous cell carcinoma (can be dangerous)" in text_of(page, "#not-known")


def test_a_new_lesion_is_not_averaged_with_the_last_one_and_a_second_photo_is(browser, page_url, picky, expected):
    _, (_, first, second, third) = picky
    with visit(browser, page_url) as page:
        answered(page, first)
        page.click("#new-lesion")
        assert answered(page, second) == expected.predict(second).verdict
        assert text_of(page, ".facts") == "Photo: usable"
        answered(page, third, button="#add-photo")
        assert text_of(page, ".facts") == "Photos: 2 of 2 usable, averaged as one lesion"
        both = [expected.predict(file).probabilities["MEL"] for file in (second, third)]
        row = page.locator(".differential tr", has_text="Melanoma").locator(".number")
        assert row.inner_text().replace("\xa0", " ") == percent(rounded(sum(both) / 2))
        page.locator(f"[aria-label='Remove {third.name}']").click()
        page.locator(".facts", has_text="Photo: usable").wait_for()
        page.click("#compare-lesions")
        heads = page.locator(".comparison thead th").all_inner_texts()
        assert heads == [f"1: {first.name}", f"2: {second.name}"]
        assert page.locator(".comparison img").count() == 4  # photo and heat map of each
        cells = page.locator(".comparison tr", has_text="Melanoma").last.locator("td").all_inner_texts()
        shown = [percent(rounded(expected.predict(file).probabilities["MEL"])) for file in (first, second)]
        assert [cell.replace("\xa0", " ") for cell in cells] == shown
        page.click("#compare-close")
        page.locator("#which-lesion").select_option(label=f"1: {first.name}")
        assert text_of(page, "#verdict") == expected.predict(first).verdict


def test_a_photo_that_is_left_out_is_named_with_the_reason(browser, page_url, picky, expected, tmp_path):
    _, (odd, good, *_) = picky
    (tmp_path / "broken.jpg").write_bytes(good.read_bytes()[:900])
    with visit(browser, page_url) as page:
        assert answered(page, odd, good, tmp_path / "broken.jpg") == expected.predict(good).verdict
        facts = text_of(page, ".facts")
        assert facts.startswith("Photos: 1 of 3 usable")
        assert f"Left out: {odd.name}: It differs too much from the training images" in facts
        assert "Left out: broken.jpg is" in facts
        assert page.locator("#which-photo").count() == 0
        assert page.locator("#original").get_attribute("alt") == f"Photo {good.name}"


def test_without_an_answer_the_photo_is_in_colour_and_the_numbers_are_folded_away(browser, page_url, picky, expected):
    _, (odd, *_) = picky
    with visit(browser, page_url) as page:
        assert answered(page, odd) == expected.predict(odd).verdict
        assert text_of(page, "#verdict").startswith("No answer: the photo does not look like the dermoscopic images")
        assert expected.predict(odd).reason in text_of(page, "#reason")
        assert "Take the photo again" in text_of(page, ".now")
        assert "no answer does not rule out disease" in text_of(page, ".now")
        assert page.locator(".plain img").evaluate("node => getComputedStyle(node).filter") == "none"
        assert page.locator(".differential").is_hidden()
        assert page.locator("#overlay").is_hidden()
        page.get_by_text("Show the numbers anyway").click()
        assert page.locator(".differential").is_visible()


def test_priors_change_the_probabilities_and_not_the_flag(browser, page_url, picky, expected):
    _, (_, good, other, *_) = picky
    with visit(browser, page_url) as page:
        answered(page, other)
        page.click("#new-lesion")
        answered(page, good)
        page.get_by_text("How common are the diagnoses where this photo comes from?").first.click()
        page.evaluate("document.querySelector('#verdict').removeAttribute('id')")
        page.get_by_role("radio", name="As in the training data").check()
        at_mix = expected.with_priors("dataset").predict(good)
        assert answered(page) == at_mix.verdict
        assert at_mix.flagged == expected.predict(good).flagged
        assert page.get_by_role("radio", name="As in the training data").is_checked()
        page.click("#compare-lesions")
        assumed = page.locator(".comparison tr", has_text="Diagnoses assumed").locator("td").all_inner_texts()
        assert assumed == ["equally common", "as common as in the model's data"]


@pytest.mark.parametrize("engine", ENGINES)
def test_not_flagged_is_called_no_all_clear(browser, lesions, tmp_path, engine):
    model = make_model(tmp_path / "model", points=HIGH, onnx=True)
    classifier = LesionClassifier.from_pretrained(model)
    with served(classifier) if engine == "server" else served_static(model) as url, visit(browser, url) as page:
        assert answered(page, lesions[0]) == classifier.predict(lesions[0]).verdict
        assert "this does not rule out disease" in text_of(page, "#verdict")
        assert "cannot recognise actinic keratosis or squamous cell carcinoma" in text_of(page, ".now")
        assert page.locator(".headline.clear").count() == 1
        assert page.locator(".priors").count() == 0  # this model does not know its dataset's mix
        assert page.get_by_role("link", name="ISIC Archive").count() == 0
        page.click("#new-lesion")
        assert page.get_by_role("link", name="ISIC Archive").is_visible()  # it has no examples either


# ---- The picture -----------------------------------------------------------------------------------------------------


def transform_of(page) -> tuple[float, float, float]:
    """Scale and position of the photo inside its frame."""
    x, y, scale = page.locator("#original").evaluate(
        "node => { const m = new DOMMatrix(getComputedStyle(node).transform); return [m.e, m.f, m.a]; }"
    )
    return x, y, scale


def test_the_picture_zooms_about_its_middle_and_the_divider_stays_in_view(browser, page_url, picky):
    _, (_, good, *_) = picky
    with visit(browser, page_url) as page:
        answered(page, good)
        frame = page.locator("#frame").bounding_box()
        page.click("#zoom-in")
        page.click("#zoom-in")
        x, y, scale = transform_of(page)
        assert scale == pytest.approx(2.25)
        assert x == pytest.approx(-frame["width"] * (2.25 - 1) / 2, abs=1)  # the middle is where it was
        assert y == pytest.approx(-frame["height"] * (2.25 - 1) / 2, abs=1)
        page.locator("#handle").focus()
        for _ in range(10):
            page.keyboard.press("ArrowRight")
        handle = page.locator("#handle").bounding_box()
        assert handle["x"] + handle["width"] / 2 == pytest.approx(frame["x"] + frame["width"] / 2, abs=2)
        assert "50%" in page.locator(".over").evaluate("node => node.style.clipPath")
        page.click("#zoom-reset")
        assert transform_of(page)[2] == 1
        page.locator("#frame").dblclick(position={"x": 10, "y": 10})
        x, y, scale = transform_of(page)
        assert scale == 3
        assert max(abs(x + 20), abs(y + 20)) < 2  # the point under the pointer is where it was


def test_other_maps_and_views_need_no_request(browser, page_url, picky):
    _, (_, good, *_) = picky
    with visit(browser, page_url) as page:
        answered(page, good)
        before = len(page.requests)
        page.click("#view-side")
        seen = {page.locator("#heat").evaluate("canvas => canvas.toDataURL()")}
        for code in ("BCC", "BKL", "MEL", "NV"):
            page.locator("#which-map").select_option(code)
            seen.add(page.locator("#heat").evaluate("canvas => canvas.toDataURL()"))
        assert len(seen) >= 3  # two that speak for nothing look the same
        assert page.locator(".triple figure").count() == 3
        assert "raised the score for melanocytic nevus" in text_of(page, "#map-note")
        assert [one for one in page.requests[before:] if not one.startswith(("data:", "blob:"))] == []


# ---- Taking it away --------------------------------------------------------------------------------------------------


def test_report_and_print_are_one_page_each_and_show_all_photos(browser, page_url, picky, expected, tmp_path):
    _, (_, *good) = picky
    with visit(browser, page_url) as page:
        answered(page, *good)
        html = saved(page, "#save-report", tmp_path / "report.html").read_text(encoding="utf-8")
        data = json.loads(saved(page, "#save-json", tmp_path / "answer.json").read_text(encoding="utf-8"))
        for kind in ("overlay.jpg", "report.html"):
            with page.expect_download() as download:  # named after this lesion, whatever is opened meanwhile
                page.evaluate(
                    "(id) => ['#save-' + id, '#new-lesion'].forEach((one) => document.querySelector(one).click())",
                    kind.partition(".")[0],
                )
            assert download.value.suggested_filename == f"{good[0].stem}-{kind}"
            page.locator("#which-lesion").select_option(index=1)
            page.wait_for_selector("#verdict")
        page.emulate_media(media="print")
        assert page.locator("#verdict").is_visible()
        assert page.locator(".toolbar").is_hidden()
        assert page.locator("[role=tablist]").is_hidden()
        assert n_pages(page.pdf(prefer_css_page_size=True)) == 1
    html = html.replace("&nbsp;", " ")
    assert data["verdict"] in html
    assert data["provenance"] == expected.provenance
    assert data["provenance"]["weights_sha256"] in html
    assert [name for file in good if (name := file.name) not in html] == []
    report = browser.new_page()
    requests: list[str] = []
    report.on("request", lambda request: requests.append(request.url))
    report.goto((tmp_path / "report.html").as_uri())
    assert report.locator("img").count() == 2 * len(good) + 1  # photo and overlay of each, and the colour scale
    assert report.locator("img").evaluate_all("images => images.every((image) => image.naturalWidth > 0)")
    assert all(one.startswith(("file:", "data:")) for one in requests)
    assert n_pages(report.pdf(prefer_css_page_size=True)) == 1
    report.close()


# ---- Batch -----------------------------------------------------------------------------------------------------------


def test_a_batch_of_ten_is_sorted_and_its_rows_open_with_next_and_back(browser, page_url, picky, expected, tmp_path):
    _, (odd, *good) = picky
    copies = {f"{number}_{file.name}": file.read_bytes() for number in range(2) for file in good}
    archive = zipped(tmp_path / "six.zip", {**copies, "labels.csv": b"image,label"})
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with visit(browser, page_url, width=390, height=844) as page:
        page.click("#tab-batch")
        choose(page, archive.source, *good[:2], odd, tmp_path / "broken.jpg", button="#batch-files .choose")
        page.wait_for_selector("#save-csv")
        assert text_of(page, "#batch-status") == "10 photos, 8 flagged, 1 without an answer, 1 could not be read."
        names = page.locator(".batch tbody th").all_inner_texts()
        malignant = {file.name: sum(expected.predict(file).probabilities[c] for c in ("BCC", "MEL")) for file in good}
        order = [malignant[name.removeprefix("0_").removeprefix("1_")] for name in names[:8]]
        assert order == sorted(order, reverse=True)
        assert names[8:] == [odd.name, "broken.jpg"]
        assert text_of(page, ".batch tbody tr .diagnosis") == "Melanocytic nevus"
        assert page.locator(".batch").bounding_box()["height"] < 1250  # 3012 px once
        table = saved(page, "#save-csv", tmp_path / "lesions.csv").read_text(encoding="utf-8-sig")
        page.locator(".batch .open").nth(1).click()
        page.wait_for_selector("#row-next")
        assert page.locator("#original").get_attribute("alt") == f"Photo {names[1]}"
        page.click("#row-next")
        page.wait_for_selector(f"#original[alt='Photo {names[2]}']")
        assert "3 of 9" in text_of(page, ".row-bar")
        page.click("#row-previous")
        page.wait_for_selector(f"#original[alt='Photo {names[1]}']")
        page.click("#row-back")
        assert page.locator("#batch").is_visible()
        assert page.evaluate("document.activeElement.textContent") == names[1]
        page.select_option("#batch-priors", "dataset")
        at_mix = expected.with_priors("dataset").predict(next(file for file in good if names[0].endswith(file.name)))
        shown = percent(rounded(at_mix.probability))
        row = page.locator(".batch tbody tr").filter(has=page.get_by_role("button", name=names[0], exact=True))
        expect(row.locator(".number").first).to_have_text(shown)
        page.locator(".batch .open").first.click()
        page.wait_for_selector(".priors[open]")
    rows = list(csv.DictReader(table.splitlines()))
    assert len(rows) == 10
    by_name = {row["image"]: row for row in rows}
    assert [row["image"] for row in rows] == names
    points = [point.name for point in expected.operating_points]
    assert list(rows[0]) == [*columns_of(expected.codes, points), *expected.provenance]
    assert by_name[good[0].name]["verdict"] == expected.predict(good[0]).verdict
    assert by_name[odd.name]["abstained"] == "True"
    assert by_name["broken.jpg"]["error"]


def test_a_batch_that_is_cleared_shows_nothing_and_the_next_one_is_answered(browser, page_url, picky, tmp_path):
    _, (_, good, *_) = picky
    many, some = (
        zipped(tmp_path / f"{n}.zip", {f"{number}.jpg": good.read_bytes() for number in range(n)}) for n in (60, 25)
    )
    with visit(browser, page_url) as page:
        page.click("#tab-batch")
        choose(page, many.source, button="#batch-files .choose")
        page.get_by_role("button", name="Stop and clear").click()
        choose(page, some.source, good, button="#batch-files .choose")
        page.wait_for_selector("#save-csv")
        expect(page.locator(".batch tbody tr")).to_have_count(26)  # of which 20 are drawn at once
        assert sorted(page.locator(".batch tbody th").all_inner_texts())[-1] == good.name


# ---- Bad input -------------------------------------------------------------------------------------------------------


def test_bad_input_gets_a_sentence_and_the_page_goes_on(browser, page_url, picky, tmp_path):
    _, (_, good, *_) = picky
    bad = {"empty.jpg": b"", "text.png": b"hello", "cut.jpg": good.read_bytes()[:5000], "page.pdf": b"%PDF-1.7 ..."}
    with visit(browser, page_url) as page:
        for name, content in bad.items():
            (tmp_path / name).write_bytes(content)
            choose(page, tmp_path / name)
            page.locator("#failure", has_text=name).wait_for()
        verdict = answered(page, good)
        (tmp_path / "nine").mkdir()
        for number in range(9):
            (tmp_path / "nine" / f"{number}.jpg").write_bytes(good.read_bytes())
        nine = sorted((tmp_path / "nine").iterdir())
        for _ in range(2):
            page.evaluate("document.querySelector('#failure')?.remove()")
            choose(page, *nine, button="#add-photo")
            page.locator("#failure", has_text="at most 8").wait_for()
            assert text_of(page, "#verdict") == verdict  # the lesion is as it was before
        answered(page, nine[0], button="#add-photo")
        assert text_of(page, ".facts") == "Photos: 2 of 2 usable, averaged as one lesion"
        page.click("#new-lesion")
        choose(page, *nine)
        page.locator("#failure", has_text="at most 8").wait_for()
        assert not page.locator("#verdict").count()


def test_photos_that_are_too_large_for_one_request_are_sent_apart(browser, picky, expected, monkeypatch):
    _, (_, *good) = picky
    monkeypatch.setattr(guard, "MAX_UPLOAD_BYTES", max(file.stat().st_size for file in good) + 1000)
    script = (ROOT / "space" / "page" / "engine_server.js").read_text(encoding="utf-8")
    assert "MAX_SENT_BYTES = 250e6" in script
    small = {"body": script.replace("250e6", "1000"), "content_type": "text/javascript"}
    with served(expected) as url, visit(browser, url) as page:
        page.route("**/engine_server.js", lambda route: route.fulfill(**small))
        page.reload()
        answered(page, *good[:2])
        assert text_of(page, ".facts") == "Photos: 2 of 2 usable, averaged as one lesion"


# ---- Ways in ---------------------------------------------------------------------------------------------------------


def drop(page, data: bytes, name: str) -> None:
    """Drop a file on the body of the page."""
    transfer = page.evaluate_handle(
        """([base64, name]) => {
            const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
            return transfer;
        }""",
        [base64.b64encode(data).decode(), name],
    )
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})


def test_files_can_be_dropped_anywhere_and_an_archive_goes_to_the_batch(browser, page_url, picky, expected, tmp_path):
    _, (_, good, *_) = picky
    with visit(browser, page_url) as page:
        drop(page, good.read_bytes(), "dropped.jpg")
        assert answered(page) == expected.predict(good).verdict
        archive = zipped(tmp_path / "two.zip", {"a.jpg": good.read_bytes(), "b.jpg": good.read_bytes()})
        drop(page, Path(archive.source).read_bytes(), "two.zip")
        page.wait_for_selector("#save-csv")
        assert page.locator(".batch tbody tr").count() == 2


def test_each_tab_has_an_address_and_arrow_keys_walk_them(browser, page_url):
    with visit(browser, f"{page_url}/#lesion", locale="de-DE") as page:
        assert page.evaluate("document.documentElement.lang") == "en"
        page.locator("#tab-lesion").focus()
        for tab in (*TABS[1:], TABS[0]):
            page.keyboard.press("ArrowRight")
            assert focused(page) == f"tab-{tab}"
            assert page.evaluate("location.hash") == f"#{tab}"
            assert page.locator(f"#{tab}").is_visible()
        page.evaluate("location.hash = '#model'")
        page.wait_for_selector("#model:not([hidden])")


def test_an_example_that_loads_slowly_does_not_replace_a_photo_that_was_dropped_meanwhile(browser, page_url, picky):
    _, (_, good, other, _) = picky
    with visit(browser, page_url) as page:
        page.click(".sample")
        answered(page)
        assert "Example of known diagnosis: melanocytic nevus." in text_of(page, ".headline")
        page.click("#new-lesion")
        held = []
        page.route("**/one.jpg", lambda route: held.append(route))
        page.click(".sample")
        page.wait_for_selector("#working")
        drop(page, other.read_bytes(), "dropped.jpg")
        answered(page)
        for route in held:
            route.fulfill(body=good.read_bytes(), content_type="image/jpeg")
        assert held
        page.wait_for_timeout(500)
        assert page.locator("#original").get_attribute("alt") == "Photo dropped.jpg"


# ---- Widths ----------------------------------------------------------------------------------------------------------

# Visible nodes that stick out of the screen, but for those inside a box that scrolls by itself (long lines of code).
WIDE = """(width) => [...document.querySelectorAll("body *")].filter((node) => node.checkVisibility()
    && !node.closest("pre, .sr-only, thead, .frame, .stack") && node.getBoundingClientRect().width > 0
    && node.getBoundingClientRect().right > width + 1).map((node) => node.outerHTML.slice(0, 100))"""
# Visible targets below 44 px.
SMALL = """() => [...document.querySelectorAll("button, select, summary, .radio, [role=slider], [role=tab]")]
    .filter((node) => node.checkVisibility()
        && Math.min(node.getBoundingClientRect().height, node.getBoundingClientRect().width) < 43.5)
    .map((node) => node.outerHTML.slice(0, 100))"""


def test_nothing_is_wider_than_the_screen_on_any_tab(browser, page_url, picky):
    _, (odd, good, other, _) = picky

    def check(page, view: str) -> None:
        for width in (320, 390, 768, 1280):
            page.set_viewport_size({"width": width, "height": 844})
            assert page.evaluate(WIDE, width) == [], (view, width)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (view, width)
            assert page.evaluate(SMALL) == [], (view, width)

    with visit(browser, page_url) as page:
        check(page, "start")
        answered(page, good, odd)
        page.locator("details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
        check(page, "answer")
        page.click("#view-side")
        page.click("#new-lesion")
        answered(page, other)
        page.click("#compare-lesions")
        check(page, "comparison")
        page.click("#tab-batch")
        choose(page, good, odd, button="#batch-files .choose")
        page.wait_for_selector("#save-csv")
        for tab in TABS[1:]:
            page.click(f"#tab-{tab}")
            check(page, tab)


def test_forced_colours_keep_bars_and_legend(browser, page_url, picky):
    _, (_, good, *_) = picky
    with visit(browser, page_url, forced_colors="active") as page:
        answered(page, good)
        bar = page.locator(".fill").first.evaluate("node => getComputedStyle(node).backgroundColor")
        card = page.locator(".card").first.evaluate("node => getComputedStyle(node).backgroundColor")
        assert bar != card
        assert page.locator(".legend img.scale").evaluate("image => image.naturalWidth") == 256


# ---- The Model tab ---------------------------------------------------------------------------------------------------


def test_the_model_tab_shows_numbers_with_their_meaning_and_figures_in_words(browser, scored_folder, tmp_path):
    metrics = json.loads((scored_folder / "metrics.json").read_text(encoding="utf-8"))
    metrics["baselines"]["metadata_only"] = {"reason": "no metadata column varies in train"}  # as in older files
    model = shutil.copytree(scored_folder, tmp_path / "model")
    (model / "metrics.json").write_text(json.dumps(metrics))
    with served_static(model) as url, visit(browser, f"{url}/#model", color_scheme="dark") as page:
        numbers = text_of(page, ".tables")
        assert f"averaged over the diagnoses {percent(metrics['test']['balanced_accuracy']['value'])}" in numbers
        assert "fraction of them that is flagged" in numbers
        assert numbers.count("a rule that uses") == 1
        images = page.locator(".figures figure > button img")
        assert images.count() == len(metrics["figures"]) > 0
        assert images.evaluate_all("all => all.map((one) => one.alt)") == [one["alt"] for one in metrics["figures"]]
        assert page.locator("figcaption").all_inner_texts() == [one["caption"] for one in metrics["figures"]]
        page.get_by_role("button", name=f"Enlarge: {metrics['figures'][0]['title']}").click()
        assert page.locator("dialog[open] img").is_visible()
        page.keyboard.press("Escape")
        for width in (320, 390, 768, 1280):
            page.set_viewport_size({"width": width, "height": 844})
            assert page.evaluate(WIDE, width) == [], width
            assert page.evaluate("document.documentElement.scrollWidth") <= width, width

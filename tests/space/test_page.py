"""The page in a real browser, as a visitor uses it: by mouse, finger and keyboard, wide and on a phone."""

import base64
import csv
import json
import re
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import answers
import batches
import pytest
from PIL import Image

from modeling.classifier import LesionClassifier
from modeling.prediction import percent, rounded
from stress.space_soak import photos
from support.space import FOR_MELANOMA, POINTS, answered, choose, drawings, make_model, served, visit, zipped

LOW = tuple(replace(point, threshold=0.01) for point in POINTS)  # reached by every photo


@pytest.fixture(scope="module")
def suspicious(tmp_path_factory) -> LesionClassifier:
    """A model that finds nevus the most probable, and every photo above all four thresholds."""
    folder = tmp_path_factory.mktemp("suspicious") / "model"
    return LesionClassifier.from_pretrained(make_model(folder, points=LOW, favours="NV"))


@pytest.fixture(scope="module")
def suspicious_url(suspicious):
    with served(suspicious) as url:
        yield url


@pytest.fixture(scope="module")
def picky(tmp_path_factory, lesions, ood_score) -> tuple[LesionClassifier, list]:
    """A model that abstains on one of the drawings alone, and the drawings with that one first.

    Its verdicts are long: above all thresholds, and the first answer is melanoma though nevus is the most probable.
    """
    folder = tmp_path_factory.mktemp("picky")
    make = partial(make_model, points=LOW, favours="NV", decision=FOR_MELANOMA)
    easy = LesionClassifier.from_pretrained(make(folder / "easy"))
    scores = {file: ood_score(easy, file) for file in lesions}
    ordered = sorted(scores, key=scores.get, reverse=True)
    between = (scores[ordered[0]] + scores[ordered[1]]) / 2
    return LesionClassifier.from_pretrained(make(folder / "model", threshold=between)), ordered


@pytest.fixture(scope="module")
def picky_url(picky):
    with served(picky[0]) as url:
        yield url


def transfer_of(page, data: bytes, name: str):
    """A file as the browser hands it over, dropped or pasted."""
    return page.evaluate_handle(
        """([base64, name]) => {
            const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
            return transfer;
        }""",
        [base64.b64encode(data).decode(), name],
    )


def saved(page, button: str, path: Path) -> Path:
    """Click a button that hands out a file, and keep it."""
    with page.expect_download() as download:
        page.locator(button).click()
    download.value.save_as(path)
    return path


def canvas(page, name: str) -> str:
    return page.locator(f"#{name}").evaluate("canvas => canvas.toDataURL()")


def text_of(page, selector: str) -> str:
    return page.locator(selector).inner_text().replace("\xa0", " ")


def focused(page) -> str:
    return page.evaluate("(document.activeElement.shadowRoot?.activeElement ?? document.activeElement).id")


# ---- The answer ------------------------------------------------------------------------------------------------------


def test_a_visitor_uploads_by_click_and_reads_the_verdict_first(browser, suspicious_url, suspicious, lesions):
    with visit(browser, suspicious_url) as page:
        choose(page, lesions[0])
        answered(page)
        expected = suspicious.predict(lesions[0])
        assert expected.diagnosis == "NV"
        assert all(expected.operating_points.values())
        verdict = text_of(page, "#verdict")
        assert verdict == expected.verdict
        assert verdict.startswith("Above the thresholds set to catch 95 % and 90 % of melanomas")
        assert focused(page) == "verdict"  # which a screen reader reads
        assert page.locator("#verdict").bounding_box()["y"] < page.locator(".differential").bounding_box()["y"]
        rows = page.locator(".differential tbody tr").all_inner_texts()
        assert len(rows) == 4
        assert percent(rounded(expected.probability)) in rows[0]
        assert [row.split("\n")[0].split(" ⚠")[0].lower() for row in rows if "⚠" in row]
        points = page.locator(".points tbody tr").all_inner_texts()
        assert len(points) == 4
        assert all("▲ above" in row and "cut-off" in row for row in points)


def test_the_diagnoses_that_the_model_does_not_know_are_named(browser, url, lesions):
    with visit(browser, url) as page:
        choose(page, lesions[0])
        answered(page)
        line = text_of(page, "#not-known")
        assert "squamous cell carcinoma (⚠ can be dangerous)" in line
        assert "dermatofibroma" in line


def test_the_answer_speaks_in_words_that_need_no_glossary(browser, picky_url, picky):
    _, (_, good, *_) = picky
    with visit(browser, picky_url) as page:
        choose(page, good)
        answered(page)
        page.locator("#answer details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
        text = text_of(page, "#answer")
        assert "Being below it is no all-clear" in text
        for jargon in ("@", "_", "OOD", "logit", "Grad-CAM", "operating point", "strongest evidence", "score 0"):
            assert jargon not in text, jargon
        assert not re.search(r"(?<![\d.])(0|100) %", text)  # no probability is certain


def test_only_photos_that_were_used_are_explained_and_all_are_shown_with_their_state(
    browser, picky, picky_url, tmp_path
):
    _, (odd, good, other, _) = picky
    with visit(browser, picky_url) as page:
        choose(page, odd, good)
        answered(page)
        states = page.locator(".photos .state").all_inner_texts()
        assert states == ["left out", "used"]
        assert page.locator(".photos img").count() == 2
        assert f"{odd.name} was left out." in page.locator(".warn").inner_text()
        assert page.locator("#original").get_attribute("alt") == f"Photo {good.name}"
        assert page.locator("#which-photo").count() == 0
        assert "1 of 2 photos used" in page.locator(".verdict").inner_text()
        assert f"{good.name}, heat map for" in saved(page, "#save-report", tmp_path / "report.html").read_text()
        choose(page, other)
        page.wait_for_function(
            "document.querySelector('#lesion .lesion-host').shadowRoot.querySelectorAll('.photos li').length == 3"
        )
        answered(page)
        assert "2 of 3 photos averaged" in page.locator(".verdict").inner_text()
        assert page.locator("#which-photo option").all_inner_texts() == [good.name, other.name]
        before = page.locator("#original").get_attribute("src")
        page.locator("#which-photo").select_option(other.name)
        assert page.locator("#original").get_attribute("src") != before


def test_one_bad_photo_is_named_and_the_others_are_answered(browser, url, lesions, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(lesions[0].read_bytes()[:900])
    with visit(browser, url) as page:
        choose(page, tmp_path / "broken.jpg")
        page.wait_for_selector("#failure")
        assert "broken.jpg is damaged or incomplete" in page.locator("#failure").inner_text()
        assert focused(page) == "failure"
        choose(page, lesions[0])
        answered(page)
        assert page.locator(".photos .state").all_inner_texts() == ["left out", "used"]
        assert "broken.jpg was left out" in page.locator(".warn").inner_text()
        page.get_by_role("button", name="Remove broken.jpg").click()
        page.wait_for_function(
            "!document.querySelector('#lesion .lesion-host').shadowRoot.querySelector('.warn, #working')"
        )
        answered(page)
        assert page.locator(".photos .state").all_inner_texts() == ["used"]


def test_a_photo_added_while_another_is_read_is_answered_too_and_a_late_answer_is_not_shown(
    browser, url, lesions, monkeypatch
):
    answer_lesion, may_answer, late = answers.answer_lesion, threading.Event(), threading.Event()

    def answer_one_late(classifier, photos):
        if len(photos) == 1:
            may_answer.wait(10)
            late.set()
        return answer_lesion(classifier, photos)

    monkeypatch.setattr(answers, "answer_lesion", answer_one_late)
    with visit(browser, url) as page:
        choose(page, lesions[0])
        page.wait_for_selector("#working")
        choose(page, lesions[1])
        answered(page)
        may_answer.set()
        late.wait(10)
        page.wait_for_timeout(1000)
        assert page.locator(".photos .file").all_inner_texts() == [lesions[0].name, lesions[1].name]
        assert page.locator(".photos .state").all_inner_texts() == ["used", "used"]


def test_a_visitor_uploads_by_drop_and_a_hostile_file_name_stays_text(browser, url, lesions):
    with visit(browser, url) as page:
        dropped = transfer_of(page, lesions[1].read_bytes(), "<img src=x onerror=alert(1)>.jpg")
        page.locator("#photos").dispatch_event("drop", {"dataTransfer": dropped})
        answered(page)
        assert "onerror" in (page.locator("#original").get_attribute("alt") or "")
        assert page.locator("img[src=x]").count() == 0


def test_the_camera_is_asked_for_a_photo_which_is_answered(browser, url, lesions):
    with visit(browser, url, width=390, height=844, has_touch=True, is_mobile=True) as page:
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Take a photo").click()
        field = chooser.value.element
        assert (field.get_attribute("capture"), field.get_attribute("accept")) == ("environment", "image/*")
        chooser.value.set_files(str(lesions[0]))
        answered(page)
        assert page.locator(".photos .file").inner_text() == lesions[0].name


def test_an_example_is_answered_at_a_click_and_its_diagnosis_told(browser, tmp_path):
    folder = make_model(tmp_path / "model", points=LOW)
    drawings(folder / "examples", ("MEL", "NV"))
    listed = [{"file": "drawn_NV.jpg", "diagnosis": "NV"}, {"file": "drawn_MEL.jpg", "diagnosis": "MEL"}]
    about = {"license": "Apache-2.0", "attribution": "Drawn by a program."}
    (folder / "examples" / "examples.json").write_text(json.dumps({"examples": listed, **about}))
    classifier = LesionClassifier.from_pretrained(folder)
    with served(classifier) as url, visit(browser, url) as page:
        assert page.locator(".sample").all_inner_texts() == ["melanocytic nevus", "melanoma"]
        assert page.locator(".sample img").evaluate_all("all => all.every((image) => image.naturalWidth > 0)")
        assert "Drawn by a program. Apache-2.0" in page.locator("#examples").inner_text()
        page.get_by_role("button", name="melanoma").click()
        answered(page)
        assert text_of(page, "#verdict") == classifier.predict(folder / "examples" / "drawn_MEL.jpg").verdict
        assert "Example, known diagnosis: melanoma." in page.locator(".verdict").inner_text()
        page.locator("#verdict").evaluate("verdict => { verdict.id = 'old'; }")
        page.get_by_role("button", name="melanoma").click()  # the same answer again is an answer, too
        page.wait_for_selector("#verdict")
        assert page.locator("#original").get_attribute("alt") == "Photo drawn_MEL.jpg"
        assert page.get_by_role("button", name="Remove").count() == 0  # it is not the visitor's
        page.get_by_role("button", name="melanocytic nevus").click()
        page.wait_for_function(
            "document.querySelector('#lesion .lesion-host').shadowRoot.querySelector('#original')?.alt.includes('NV')"
        )
        assert "known diagnosis: melanocytic nevus" in page.locator(".verdict").inner_text()


def test_a_photo_can_be_pasted(browser, url, lesions):
    with visit(browser, url) as page:
        pasted = transfer_of(page, lesions[0].read_bytes(), "pasted.jpg")
        page.evaluate("clipboardData => window.dispatchEvent(new ClipboardEvent('paste', { clipboardData }))", pasted)
        answered(page)
        assert page.locator(".photos .file").inner_text() == "pasted.jpg"


def test_an_abstention_is_said_first_and_its_maps_are_dimmed(browser, tmp_path, lesions):
    refusing = LesionClassifier.from_pretrained(make_model(tmp_path / "model", abstains=True))
    with served(refusing) as url, visit(browser, url) as page:
        choose(page, lesions[0])
        answered(page)
        assert text_of(page, "#verdict").startswith("The model abstains:")
        assert "unlike those that this model was trained on" in page.locator("#abstention").inner_text()
        assert page.locator("#overlay").evaluate("node => Number(getComputedStyle(node).opacity)") < 0.6


# ---- The picture -----------------------------------------------------------------------------------------------------


def test_the_picture_opens_on_the_first_answer_in_page_and_report(browser, picky, picky_url, tmp_path):
    classifier, (_, good, *_) = picky
    expected = classifier.predict(good)
    assert expected.diagnosis == "MEL"
    assert max(expected.probabilities, key=expected.probabilities.get) == "NV"
    with visit(browser, picky_url) as page:
        choose(page, good)
        answered(page)
        assert "First answer, weighted towards rare diagnoses and melanoma: melanoma" in text_of(page, "#verdict")
        assert page.locator("#which-map").input_value() == "MEL"
        assert page.locator("#overlay").get_attribute("aria-label") == "Heat map for melanoma over the photo"
        opened = canvas(page, "overlay")
        painted = set()
        for code in ("BCC", "BKL", "NV", "contrast"):
            page.locator("#which-map").select_option(code)
            painted.add(canvas(page, "overlay"))
        assert len(painted) > 1
        page.locator("#which-map").select_option("MEL")
        assert canvas(page, "overlay") == opened
        assert page.locator("#which-map option").last.inner_text() == "melanoma rather than melanocytic nevus"
        report = saved(page, "#save-report", tmp_path / "report.html").read_text()
    assert "heat map for melanoma." in report


def test_choosing_a_map_and_its_opacity_repaints_without_asking_the_server(browser, url, lesions):
    with visit(browser, url) as page:
        choose(page, lesions[0])
        answered(page)
        asked = len(page.requests)
        page.get_by_text("More views").click()
        assert page.locator("#model-input").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [64, 64]
        seen = {canvas(page, "heat")}
        values = page.locator("#which-map option").evaluate_all("options => options.map((one) => one.value)")
        assert len(values) == 5
        for value in values[1:]:
            page.locator("#which-map").select_option(value)
            seen.add(canvas(page, "heat"))
        assert len(seen) >= 4
        assert "rather than" in page.locator("#map-note").inner_text()
        before = canvas(page, "overlay")
        page.locator("#opacity").fill("5")
        assert canvas(page, "overlay") != before
        assert [one for one in page.requests[asked:] if not one.startswith(("data:", "blob:"))] == []


def test_the_slider_follows_the_pointer_on_the_picture_and_the_arrow_keys(browser, url, lesions):
    with visit(browser, url) as page:
        choose(page, lesions[0])
        answered(page)
        page.locator("#compare").scroll_into_view_if_needed()
        box = page.locator("#compare").bounding_box()

        def divider() -> float:
            handle = page.locator("#handle").bounding_box()
            return (handle["x"] + handle["width"] / 2 - box["x"]) / box["width"]

        def first_painted() -> float:
            clip = page.locator("#overlay").evaluate("node => node.style.clipPath")
            return float(re.search(r"([\d.]+)%\)", clip)[1]) / 100

        y = box["y"] + box["height"] / 3
        page.mouse.move(box["x"] + 0.5 * box["width"], y)
        page.mouse.down()
        for share in (0.3, 0.8, 0.2):
            page.mouse.move(box["x"] + share * box["width"], y)
            assert divider() == pytest.approx(share, abs=0.01)
            assert first_painted() == pytest.approx(share, abs=0.01)  # left of the divider lies the bare photo
        page.mouse.up()
        assert page.evaluate("String(getSelection())") == ""
        page.locator("#handle").focus()
        page.keyboard.press("ArrowRight")
        assert divider() == pytest.approx(0.25, abs=0.01)
        width = page.locator("#original").bounding_box()["width"]
        page.locator("#zoom").click()
        assert page.locator("#original").bounding_box()["width"] > 1.5 * width


# ---- Taking it away --------------------------------------------------------------------------------------------------


def test_report_data_and_overlay_can_be_taken_away_and_the_report_fits_one_page(
    browser, suspicious_url, suspicious, lesions, tmp_path
):
    with visit(browser, suspicious_url) as page:
        choose(page, lesions[-1])
        answered(page)
        for button, name in (("report", "report.html"), ("json", "answer.json"), ("overlay", "overlay.jpg")):
            saved(page, f"#save-{button}", tmp_path / name)
    expected = suspicious.predict(lesions[-1])
    html = (tmp_path / "report.html").read_text()
    assert "<!--" not in html
    assert html.count('src="data:image/') == 4  # photo, heat map, overlay, colour scale
    assert expected.verdict in html
    assert suspicious.provenance["weights_sha256"] in html
    data = json.loads((tmp_path / "answer.json").read_text())
    assert data["verdict"] == expected.verdict
    assert data["operating_points"] == expected.operating_points
    assert data["notice"] == suspicious.notice
    assert "picture" not in data["photos"][0]
    with Image.open(tmp_path / "overlay.jpg") as overlay:
        assert overlay.size == (640, 480)
    report = browser.new_page()
    asked: list[str] = []
    report.on("request", lambda request: asked.append(request.url))
    report.goto((tmp_path / "report.html").as_uri())
    assert report.locator("img").evaluate_all("images => images.every((image) => image.naturalWidth > 0)")
    assert all(one.startswith(("file:", "data:")) for one in asked)
    pdf = report.pdf(prefer_css_page_size=True)
    report.close()
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 1


# ---- Batch -----------------------------------------------------------------------------------------------------------


def batch_of(page, *files) -> None:
    page.get_by_role("tab", name="Batch").click()
    choose(page, *files, field="#batch-files")
    page.wait_for_selector("#save-csv")


def test_a_batch_is_sorted_by_melanoma_hands_out_its_csv_and_opens_its_rows(
    browser, url, classifier, lesions, tmp_path
):
    archive = zipped(tmp_path / "three.zip", {file.name: file.read_bytes() for file in lesions[:3]})
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with visit(browser, url) as page:
        batch_of(page, archive.source, tmp_path / "broken.jpg")
        assert "1 could not be read" in page.locator("#batch-status").inner_text()
        ranked = sorted(lesions[:3], key=lambda file: -classifier.predict(file).probabilities["MEL"])
        names = page.locator(".batch tbody th").all_inner_texts()
        assert names == [*(file.name for file in ranked), "broken.jpg"]
        assert page.get_by_role("columnheader", name="Melanoma").get_attribute("aria-sort") == "descending"
        assert text_of(page, ".batch tbody tr:first-child .open") == classifier.predict(ranked[0]).verdict
        page.get_by_role("button", name="File", exact=True).click()
        assert page.locator(".batch tbody th").all_inner_texts() == sorted(names)
        table = saved(page, "#save-csv", tmp_path / "lesions.csv").read_text(encoding="utf-8-sig")
        page.locator(".batch tr", has_text=ranked[1].name).locator(".open").click()
        answered(page)
        assert page.get_by_role("tab", name="One lesion").get_attribute("aria-selected") == "true"
        assert page.locator("#original").get_attribute("alt") == f"Photo {ranked[1].name}"
        assert focused(page) == "verdict"
        page.get_by_role("tab", name="Batch").click()
        assert page.locator("#batch-status").inner_text() == "4 photos, 1 could not be read."
    rows = list(csv.DictReader(table.splitlines()))
    assert [row["image"] for row in rows] == [*(file.name for file in lesions[:3]), "broken.jpg"]
    assert rows[0]["verdict"] == classifier.predict(lesions[0]).verdict


def test_stop_and_clear_empties_the_batch_and_the_next_one_starts_anew(browser, url, lesions, tmp_path):
    many = zipped(tmp_path / "many.zip", {f"{n}.jpg": data for n, data in enumerate(photos(200))})
    with visit(browser, url) as page:
        page.get_by_role("tab", name="Batch").click()
        choose(page, many.source, field="#batch-files")
        page.get_by_role("button", name="Stop and clear").click()
        assert page.locator("#batch-answer > *").count() == 0
        choose(page, lesions[0], field="#batch-files")
        page.wait_for_selector("#save-csv")
        assert page.locator(".batch tbody th").all_inner_texts() == [lesions[0].name]


def test_a_batch_that_another_took_the_place_of_is_not_shown(browser, url, lesions, monkeypatch):
    classify_rows, begun, ended = batches.classify_rows, threading.Event(), threading.Event()
    may_end = {2: threading.Event(), 1: threading.Event()}  # by the number of photos

    def classify_late(classifier, photos, **options):
        begun.set()
        may_end[len(photos)].wait(30)
        yield from classify_rows(classifier, photos, **options)
        ended.set()

    monkeypatch.setattr(batches, "classify_rows", classify_late)
    with visit(browser, url) as page:
        page.get_by_role("tab", name="Batch").click()
        choose(page, *lesions[:2], field="#batch-files")
        assert begun.wait(30)
        choose(page, lesions[2], field="#batch-files")
        page.wait_for_timeout(1000)  # it is sent
        may_end[2].set()
        assert ended.wait(30)
        page.wait_for_timeout(1000)
        assert page.locator("#batch-answer table").count() == 0
        may_end[1].set()
        page.wait_for_selector("#save-csv")
        assert page.locator(".batch tbody th").all_inner_texts() == [lesions[2].name]


# ---- Phones and keyboards ---------------------------------------------------------------------------------------------

TABS = ("One lesion", "Batch", "Model", "API")


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844), (320, 640)])
def test_nothing_is_wider_than_the_screen(browser, suspicious_url, lesions, width, height):
    phone = {"has_touch": True, "is_mobile": True} if width < 600 else {}
    with visit(browser, suspicious_url, width=width, height=height, **phone) as page:
        notice = page.locator("#lesion-head .notice")
        assert "not a medical device" in notice.inner_text()
        box = notice.bounding_box()
        assert 0 <= box["y"] < box["y"] + box["height"] < height
        assert page.locator("#photos .camera").is_visible() == (width < 600)
        choose(page, lesions[0])
        answered(page)
        for tab in TABS:
            page.get_by_role("tab", name=tab).click()
            if tab == "Batch":
                choose(page, *lesions[:2], field="#batch-files")
                page.wait_for_selector("#save-csv")
            page.wait_for_timeout(300)
            wide = page.evaluate(WIDE, width)
            assert wide == [], tab
            assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
            if width < 600:
                assert page.evaluate(SMALL) == [], tab


@pytest.mark.parametrize("case", ["one", "averaged", "left out"])
def test_an_answer_fits_two_screens_of_a_phone_and_hides_nothing_that_safety_needs(browser, picky, picky_url, case):
    _, (odd, good, other, _) = picky
    files = {"one": (good,), "averaged": (good, other), "left out": (good, odd)}[case]
    with visit(browser, picky_url, width=390, height=844, has_touch=True, is_mobile=True) as page:
        choose(page, *files)
        answered(page)
        assert page.evaluate("document.documentElement.scrollHeight") <= 2 * 844
        shown = ["#verdict", "#not-known", ".differential", "#overlay", ".notice"]
        for part in [*shown, ".warn"] if case == "left out" else shown:
            assert page.locator(part).is_visible(), part
        if case == "left out":
            assert "unlike those that this model was trained on" in page.locator(".warn").inner_text()
        assert (
            page.locator(".photos .state").all_inner_texts() == ["used", case.replace("averaged", "used")][: len(files)]
        )
        assert page.locator(".points").is_hidden()
        page.get_by_text("Thresholds, and how they did").click()
        assert page.locator(".points").is_visible()


ALL = """const all = (root) => [...root.querySelectorAll("*")].flatMap((node) =>
    node.shadowRoot ? [node, ...all(node.shadowRoot)] : [node]);"""
# Visible nodes that stick out of the screen, but for those inside a box that scrolls by itself (long lines of code).
WIDE = f"""(width) => {{ {ALL}
    return all(document.body).filter((node) => node.checkVisibility() && !node.closest("pre, .sr-only, .points thead")
        && node.getBoundingClientRect().width > 0 && node.getBoundingClientRect().right > width + 1)
        .map((node) => node.outerHTML.slice(0, 100));
}}"""
# Visible targets below 44 px.
SMALL = f"""() => {{ {ALL}
    return all(document.body).filter((node) => node.checkVisibility()
        && node.matches("button, select, summary, input, [role=slider], [role=tab]")
        && Math.min(node.getBoundingClientRect().height, node.getBoundingClientRect().width) < 43.5)
        .map((node) => node.outerHTML.slice(0, 100));
}}"""


def test_the_tabs_are_walked_by_arrow_keys_and_the_page_speaks_english(browser, url):
    with visit(browser, url, locale="de-DE") as page:
        assert page.evaluate("document.documentElement.lang") == "en"
        page.get_by_role("tab", name="One lesion").focus()
        for tab in (*TABS[1:], TABS[0]):
            page.keyboard.press("ArrowRight")
            assert page.get_by_role("tab", name=tab).get_attribute("aria-selected") == "true"
            assert focused(page) == page.get_by_role("tab", name=tab).get_attribute("id")
        page.keyboard.press("End")
        assert page.locator("#programs").is_visible()
        assert page.locator("#lesion").is_hidden()


def test_the_api_tab_names_the_address_by_which_the_page_was_reached(browser, url):
    address = url.replace("127.0.0.1", "localhost")
    with visit(browser, address) as page:
        page.get_by_role("tab", name="API").click()
        lines = "".join(page.locator("#programs pre").all_inner_texts())
        assert lines.count(address) == 5
        assert "127.0.0.1" not in lines


def test_forced_colours_keep_bars_and_legend(browser, url, lesions):
    with visit(browser, url, forced_colors="active") as page:
        choose(page, lesions[0])
        answered(page)
        bar = page.locator(".fill").first.evaluate("node => getComputedStyle(node).backgroundColor")
        card = page.locator(".card").first.evaluate("node => getComputedStyle(node).backgroundColor")
        assert bar != card
        assert page.locator(".legend img.scale").evaluate("image => image.naturalWidth") == 256

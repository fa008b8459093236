"""The page in a real browser, Debian's Chromium, which may reach nothing but the app."""

import re
import shutil
import zipfile

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from melp.app.screenshots import find_chromium  # noqa: E402
from melp.notice import NOTICE  # noqa: E402

CHROMIUM = find_chromium()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]
PATIENCE = 60_000  # ms: the machine may be busy
AF = "Atrial fibrillation (simulated)"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, served):
    """A page of the app; what it asks of another host is refused and fails the test, as do errors of its scripts."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page, outside, errors = context.new_page(), [], []

    def watch(route):
        if route.request.url.startswith((served.url, "data:", "blob:")):
            route.continue_()
        else:
            outside.append(route.request.url)
            route.abort()

    context.route("**/*", watch)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(PATIENCE)
    page.goto(served.url)
    page.get_by_role("button", name=AF).wait_for()
    yield page
    context.close()
    assert not outside and not errors


def upload(page, files, place: int = 0):
    page.locator("input[type=file]").nth(place).set_input_files([str(path) for path in files])


@pytest.mark.parametrize("kind", ["dicom", "xml", "wfdb"])
def test_a_file_is_read(page, files, kind, served):
    upload(page, files[kind])
    page.locator("#ecg svg path.trace[data-lead=V6]").wait_for(state="attached")
    assert page.get_by_text("What was done to the signal").is_visible()
    assert page.get_by_text("Not calibrated").first.is_visible() and page.get_by_text(NOTICE).is_visible()
    page.get_by_text("Drafted report").wait_for()
    assert "Doe" not in page.content()
    assert not [path for path in served.app.uploads.root.rglob("*") if path.is_file()]


def test_a_click_shows_evidence_on_the_trace(page):
    page.get_by_role("button", name=AF).click()
    page.locator("[data-evidence]").first.click()
    evidence = page.locator(".evidence")
    evidence.wait_for()
    assert re.search(r"removing|nothing to show", evidence.inner_text())
    shown = page.locator("#ecg svg rect.tint").count()
    assert shown or "nothing to show" in evidence.inner_text()


def test_words_are_answered(page):
    page.get_by_role("button", name=AF).click()
    page.get_by_label("Any finding in words").fill("right ventricular strain")
    page.get_by_label("Any finding in words").press("Enter")
    page.get_by_role("button", name="right ventricular strain").wait_for()


def test_paper_is_measured_zoomed_and_laid_out_by_keyboard(page):
    page.get_by_role("button", name=AF).click()
    paper = page.locator("#ecg .paper")
    paper.wait_for()
    width = page.locator("#ecg svg").bounding_box()["width"]
    paper.focus()
    page.keyboard.press("+")
    assert page.locator("#ecg svg").bounding_box()["width"] == pytest.approx(1.25 * width, rel=0.01)
    page.keyboard.press("0")
    page.keyboard.press("c")
    for _ in range(4):
        page.keyboard.press("Shift+ArrowRight")  # 5 mm, 200 ms
        page.keyboard.press("Shift+ArrowUp")  # 5 mm, 0.5 mV
    assert page.locator("#ecg output").inner_text() == "800 ms, 75/min, 2.00 mV"
    page.locator("#ecg").get_by_role("button", name="12 x 1").press("Enter")
    assert page.locator("#ecg svg text.label").count() == 12
    page.locator("#ecg").get_by_role("button", name="V1", exact=True).press(" ")
    assert page.locator("#ecg svg path.trace[data-lead=V1]").count() == 0


def test_calipers_are_dragged(page):
    page.get_by_role("button", name=AF).click()
    page.locator("#ecg").get_by_role("button", name="Calipers").click()
    box = page.locator("#ecg svg").bounding_box()
    px = box["width"] / 270  # the sheet has 270 mm
    page.mouse.move(box["x"] + 40 * px, box["y"] + 20 * px)
    page.mouse.down()
    page.mouse.move(box["x"] + 60 * px, box["y"] + 30 * px, steps=3)
    page.mouse.up()
    ms, mv = re.match(r"(\d+) ms.*, ([\d.]+) mV", page.locator("#ecg output").inner_text()).groups()
    assert abs(int(ms) - 800) <= 5 and abs(float(mv) - 1) <= 0.02


def test_two_recordings_are_compared(page):
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="A simulated patient, twice").click()
    page.get_by_text("What changed").wait_for()
    assert page.locator("#compared svg path.trace.second[data-lead=II]").count() >= 1


def test_an_archive_is_searched_and_a_hit_opened(page):
    page.get_by_role("tab", name="Search").click()
    page.get_by_label("Search in words").fill("atrial fibrillation")
    page.get_by_role("button", name="Search", exact=True).click()
    page.locator("[data-open]").first.wait_for()
    assert page.locator("ol.hits > li").count() == 3
    page.locator("[data-open]").first.click()
    page.locator("#ecg svg").wait_for()
    assert page.get_by_role("tab", name="Read").get_attribute("aria-selected") == "true"


def test_a_batch_is_downloaded(page, files, tmp_path):
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for path in [*files["wfdb"], *files["xml"]]:
            archive.write(path, path.name)
    page.get_by_role("tab", name="Batch").click()
    batch = page.get_by_role("tabpanel").filter(has_text="Files, or a zip file")
    with page.expect_response("**/upload*"):
        batch.locator("input[type=file]").first.set_input_files(str(tmp_path / "some.zip"))
    page.wait_for_timeout(300)
    page.get_by_label("With a PDF report per recording").check()
    page.get_by_role("button", name="Start").click()
    page.get_by_text("2 read, 0 rejected.").wait_for()
    for kind, begin in (("CSV", b"# Research"), ("Parquet", b"PAR1"), ("PDF reports", b"PK")):
        with page.expect_download() as download:
            page.get_by_text(f"Download {kind}").click()
        download.value.save_as(tmp_path / kind)
        assert (tmp_path / kind).read_bytes().startswith(begin)
    assert len(zipfile.ZipFile(tmp_path / "PDF reports").namelist()) == 2


def test_a_folder_is_a_batch(page, files, tmp_path):
    for ward, kind in (("a", "wfdb"), ("b", "wfdb"), ("b", "xml")):
        (tmp_path / "stay" / ward).mkdir(parents=True, exist_ok=True)
        for path in files[kind]:
            shutil.copy(path, tmp_path / "stay" / ward)
    page.get_by_role("tab", name="Batch").click()
    batch = page.get_by_role("tabpanel").filter(has_text="Files, or a zip file")
    with page.expect_response("**/upload*"):
        batch.locator("input[type=file]").nth(1).set_input_files(tmp_path / "stay")
    batch.get_by_text("three").first.wait_for()
    page.get_by_role("button", name="Start").click()
    page.get_by_text("3 read, 0 rejected.").wait_for()


def test_a_batch_ends_when_its_page_is_closed(page, served, slow_batch):
    path, ended = slow_batch
    page.get_by_role("tab", name="Batch").click()
    batch = page.get_by_role("tabpanel").filter(has_text="Files, or a zip file")
    with page.expect_response("**/upload*"):
        batch.locator("input[type=file]").first.set_input_files(str(path))
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Start").click()
    page.locator("progress").wait_for()
    assert list(served.app.uploads._requests.rglob("*.xml"))
    page.close()
    ended()


def test_an_error_is_shown(page, tmp_path):
    (tmp_path / "letter.dcm").write_text("Dear Mrs Mustermann")
    upload(page, [tmp_path / "letter.dcm"])
    alert = page.locator(".problem")
    alert.wait_for()
    assert "letter.dcm" in alert.inner_text() and "unknown format" in alert.inner_text()
    assert "Mustermann" not in page.locator("body").inner_text()


SMALL = """() => [...document.querySelectorAll("body *")].flatMap((node) => [node, ...(node.shadowRoot
    ? node.shadowRoot.querySelectorAll("*") : [])]).filter((node) => [...node.childNodes].some((child) =>
    child.nodeType === 3 && child.textContent.trim()) && node.getClientRects().length
    && !["STYLE", "SCRIPT", "TITLE"].includes(node.tagName.toUpperCase())).map((node) => {
    const scale = node.ownerSVGElement?.getScreenCTM?.().a ?? 1;
    return [node.textContent.trim().slice(0, 40), parseFloat(getComputedStyle(node).fontSize) * scale];
    }).filter(([_, size]) => size < 11.99)"""
PAPER = "getComputedStyle(document.querySelector('#ecg').shadowRoot.querySelector('.paper')).backgroundColor"


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_when_narrow_and_in_the_dark(page, served, width, scheme):
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(f"{served.url}?__theme={scheme}")
    page.get_by_role("button", name=AF).click()
    page.locator("#ecg svg").wait_for()
    page.get_by_text("Drafted report").wait_for()
    assert not page.evaluate(SMALL)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#notice").bounding_box()["y"] < 800 and page.locator("#notice").is_visible()
    assert (page.evaluate(PAPER) == "rgb(23, 25, 30)") == (scheme == "dark")


def test_an_example_is_reached_by_keyboard_alone(page):
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText") == AF:
            break
    page.keyboard.press("Enter")
    page.locator("#ecg svg").wait_for()
    assert page.get_by_text("Simulated, no patient").is_visible()

"""Writes the screenshots of docs/app.md: simulated ECGs, in Debian's Chromium.

    python -m melp.app.screenshots --model MODEL [--output docs/app]

It needs `pip install playwright pillow` and Chromium (`apt-get install chromium`).
"""

import argparse
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from melp.files import refuse_file
from melp.sources import check_model

ARCHIVED = 40  # simulated recordings that Search searches
BATCH = 6  # of them that Batch reads
WIDE, NARROW = {"width": 1200, "height": 1150}, {"width": 400, "height": 850}


def find_chromium() -> str | None:
    """Returns the path of the Chromium that is installed, if any."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def write_archive(folder: Path, model: str) -> tuple[Path, Path]:
    """Writes simulated recordings as WFDB; returns an index of them, and a zip file of some and of a letter."""
    import wfdb

    from melp.app.examples import simulated_block
    from melp.predict.options import Options
    from melp.predict.run import run
    from melp.synthetic import corpus

    archive, index, batch = folder / "archive", folder / "index", folder / "ward.zip"
    archive.mkdir()
    for number, item in enumerate(corpus.plan(records=ARCHIVED).to_pylist(), start=1):
        block = simulated_block(item["record"])
        samples = {"fmt": ["16"] * 12, "adc_gain": [1000.0] * 12, "baseline": [0] * 12}
        wfdb.wrsamp(
            f"simulated-{number:02d}", fs=block.sampling_rate, units=["mV"] * 12, sig_name=block.leads,
            p_signal=block.signal[0].T.astype(float), write_dir=str(archive), **samples,
        )  # fmt: skip
    run(Options([str(archive)], model, output=index, embeddings=True, num_workers=0))
    with zipfile.ZipFile(batch, "w") as packed:
        for path in sorted(archive.iterdir())[: 2 * BATCH]:
            packed.write(path, path.name)
        packed.writestr("letter.dcm", "a letter, and no ECG")
    return index, batch


class Camera:
    """A browser that visits the app at `url` and saves pictures in a folder."""

    def __init__(self, browser, url: str, folder: Path):
        self.browser, self.url, self.folder = browser, url, folder

    def take(self, name: str, show, size: dict, scheme: str = "light"):
        """Saves what is in sight after `show(page)`, with 128 colours: a third of the size."""
        from PIL import Image

        page, path = self.browser.new_page(viewport=size), self.folder / f"{name}.png"
        page.set_default_timeout(300_000)
        page.goto(f"{self.url}?__theme={scheme}")
        show(page)
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)
        page.screenshot(path=path)
        Image.open(path).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
        page.close()


def read(page):
    page.get_by_role("button", name="Ventricular bigeminy (simulated)").click()
    page.get_by_text("Drafted report").wait_for()
    page.locator("[data-evidence]").first.click()
    page.locator(".evidence").wait_for()
    page.locator("h2.record").evaluate("heading => heading.scrollIntoView()")


def findings(page):
    read(page)
    page.get_by_label("Any finding in words").fill("premature ventricular beats, right ventricular strain")
    page.get_by_label("Any finding in words").press("Enter")
    page.get_by_text("In your words").wait_for()
    page.locator(".evidence").evaluate("card => card.scrollIntoView()")


def compare(page):
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="A simulated patient, twice").click()
    page.get_by_text("What changed").wait_for()
    page.locator("#compared").evaluate("paper => paper.scrollIntoView()")


def search(page):
    page.get_by_role("tab", name="Search").click()
    page.get_by_label("Search in words").fill("atrial fibrillation")
    page.get_by_role("button", name="Search", exact=True).click()
    page.locator("[data-open]").first.wait_for()


def batch(archive: Path):
    def show(page):
        page.get_by_role("tab", name="Batch").click()
        panel = page.get_by_role("tabpanel").filter(has_text="Files, or a zip file")
        with page.expect_response("**/upload*"):
            panel.locator("input[type=file]").first.set_input_files(str(archive))
        panel.get_by_text(archive.stem).first.wait_for()
        page.get_by_label("With a PDF report per recording").check()
        page.get_by_role("button", name="Start").click()
        page.get_by_text("Download PDF reports").wait_for()

    return show


def write_screenshots(url: str, folder: Path, archive: Path):
    """Writes a picture per state of the app at `url`."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        camera = Camera(browser, url, folder)
        camera.take("read", read, WIDE)
        camera.take("findings", findings, WIDE)
        camera.take("dark", read, WIDE, "dark")
        camera.take("narrow", read, NARROW)
        camera.take("compare", compare, WIDE)
        camera.take("search", search, WIDE)
        camera.take("batch", batch(archive), WIDE)
        browser.close()


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="python -m melp.app.screenshots",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="of the findings that are shown")
    parser.add_argument("--output", type=Path, default=Path("docs/app"), metavar="DIR", help="default: docs/app")
    options = parser.parse_args(arguments)
    try:
        check_model(options.model)
        refuse_file(options.output)
        if find_chromium() is None:
            raise ValueError("there is no Chromium: apt-get install chromium.")
        from melp.app.engine import Settings
        from melp.app.run import serving

        with tempfile.TemporaryDirectory() as folder:
            index, archive = write_archive(Path(folder), options.model)
            with serving(Settings(options.model, index), port=0) as served:
                write_screenshots(served.url, options.output, archive)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"melp.app.screenshots: {error}")
    print(f"Written: {options.output}")


if __name__ == "__main__":
    main()

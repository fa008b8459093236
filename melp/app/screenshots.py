"""Writes the screenshots of docs/app.md: simulated ECGs, in Debian's Chromium.

    python -m melp.app.screenshots --model MODEL [--index INDEX] [--output docs/app]

It needs `pip install playwright pillow` and Chromium (`apt-get install chromium`).
"""

import argparse
import shutil
import sys
from pathlib import Path


def find_chromium() -> str | None:
    """Returns the path of the Chromium that is installed, if any."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def write_screenshots(url: str, folder: Path, with_index: bool):
    """Visits the app at `url` and writes a picture per state."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        for name, width, scheme in (("read", 1200, "light"), ("dark", 1200, "dark"), ("narrow", 400, "light")):
            page = browser.new_page(viewport={"width": width, "height": 1150 if width > 400 else 850})
            page.set_default_timeout(120_000)
            page.goto(f"{url}?__theme={scheme}")
            page.get_by_role("button", name="Ventricular bigeminy (simulated)").click()
            page.get_by_text("Drafted report").wait_for()
            page.locator("[data-evidence]").first.click()
            page.locator(".evidence").wait_for()
            page.locator("h2.record").scroll_into_view_if_needed()
            _save(page, folder / f"{name}.png")
            page.close()
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.set_default_timeout(120_000)
        page.goto(f"{url}?__theme=light")
        page.get_by_role("tab", name="Compare").click()
        page.get_by_role("button", name="A simulated patient, twice").click()
        page.get_by_text("What changed").wait_for()
        _save(page, folder / "compare.png")
        if with_index:
            page.get_by_role("tab", name="Search").click()
            page.get_by_label("Search in words").fill("atrial fibrillation")
            page.get_by_role("button", name="Search", exact=True).click()
            page.locator("[data-open]").first.wait_for()
            _save(page, folder / "search.png")
        browser.close()


def _save(page, path: Path):
    """Saves what is in sight, with 128 colours: a third of the size."""
    from PIL import Image

    page.wait_for_timeout(800)
    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="python -m melp.app.screenshots",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="of the findings that are shown")
    parser.add_argument("--index", type=Path, metavar="INDEX", help="of simulated recordings: for a picture of Search")
    parser.add_argument("--output", type=Path, default=Path("docs/app"), metavar="DIR", help="default: docs/app")
    options = parser.parse_args(arguments)
    if find_chromium() is None:
        sys.exit("melp.app.screenshots: there is no Chromium: apt-get install chromium.")
    try:
        from melp.app.engine import Settings
        from melp.app.run import serving

        with serving(Settings(options.model, options.index), port=0) as served:
            write_screenshots(served.url, options.output, options.index is not None)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"melp.app.screenshots: {error}")
    print(f"Written: {options.output}")


if __name__ == "__main__":
    main()

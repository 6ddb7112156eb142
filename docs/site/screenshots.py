"""Pictures of pages, taken by a browser.

    python docs/site/screenshots.py FOLDER

trains the tutorial's network in two ways in a folder, and draws report.png and show.png of
docs/images/.
"""

import contextlib
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts"))
import chromium  # noqa: E402

IMAGES = ROOT / "docs" / "images"
SIZE = {"width": 1200, "height": 900}


def photograph(pages: Mapping[Path, str], width: int = 600) -> None:
    """Save the beginning of each page.

    Args:
        pages: the address of each page, by the PNG to write.
        width: of the PNGs, in pixels.

    Raises:
        SystemExit: there is no browser.
    """
    program = chromium.find() or sys.exit(chromium.MISSING)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        for file, address in pages.items():
            page.goto(address)
            page.wait_for_timeout(500)  # charts are drawn
            if page.locator("#drawing").count():
                write_three(page)
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            height = width * SIZE["height"] // SIZE["width"]
            # 256 colours are enough for a page, and take a third of the room.
            picture.resize((width, height), Image.Resampling.LANCZOS).quantize(256).save(
                file, optimize=True
            )
        browser.close()


THREE = [
    (0.3, 0.25), (0.5, 0.16), (0.68, 0.3), (0.48, 0.46), (0.7, 0.62), (0.55, 0.82), (0.28, 0.74)
]  # fmt: skip
"""As fractions of the canvas's sides."""


def write_three(page: Page) -> None:
    """Write a 3 on the canvas of a report."""
    box = page.locator("#drawing canvas").first.bounding_box()
    assert box is not None
    for i, (x, y) in enumerate(THREE):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=9)
        if i == 0:
            page.mouse.down()
    page.mouse.up()
    page.wait_for_timeout(200)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of `feedax show` over the runs in a folder."""
    command = [sys.executable, "-m", "feedax", "show"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as show:
        try:
            said = ""
            for line in show.stdout or ():
                said += line
                if address := re.search(r"http://\S+?(?=[,.;]?(\s|$))", line):
                    yield address[0]
                    return
            sys.exit(f"feedax show says no address: {said}")
        finally:
            show.terminate()


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    feedax = [sys.executable, "-m", "feedax"]
    subprocess.run([*feedax, "train", "--out", "runs/tutorial"], cwd=folder, check=True)
    modern = ["train", "--preset", "modern", "--out", "runs/modern"]
    subprocess.run([*feedax, *modern], cwd=folder, check=True)
    report = (folder / "runs" / "modern" / "report.html").resolve().as_uri()
    with served(folder) as address:
        pages = {IMAGES / "report.png": report, IMAGES / "show.png": address}
        photograph(pages, width=SIZE["width"])


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())

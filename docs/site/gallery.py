"""The gallery: runs that docs/gallery.md tells how to train, and the reports that they write.

    python docs/site/gallery.py FOLDER

runs the page's code and commands in a folder, and photographs each report that the page shows.
"""

import os
import re
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path

import screenshots

PAGE = Path(__file__).parents[1] / "gallery.md"
CODE = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
REPORT = re.compile(r"^<!-- report: (\S+)\.html -->$", re.MULTILINE)
"""Where the page shows a report: its path in the folder."""


def train(folder: Path) -> None:
    """Run the page's code and commands, one after the other, and photograph the reports."""
    text = PAGE.read_text("utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for language, code in CODE.findall(text):
        command = [sys.executable, "-c", code] if language == "python" else ["bash", "-ec", code]
        subprocess.run(command, cwd=folder, check=True, env=os.environ | {"PATH": path})
    screenshots.photograph({
        folder / f"{report}.png": (folder / f"{report}.html").as_uri()
        for report in REPORT.findall(text)
    })  # fmt: skip


def with_reports(text: str, folder: Path) -> str:
    """A page with a picture of each report, which leads to it, if they were made."""

    def shown(match: re.Match[str]) -> str:
        report = match[1]
        if not (folder / f"{report}.png").exists():
            return "*`make docs` puts the report here.*"
        return (
            f'<a class="report" href="gallery/{escape(report)}.html">'
            f'<img src="gallery/{escape(report)}.png" alt="The beginning of the report" '
            'width="600" height="450"></a>'
        )

    return REPORT.sub(shown, text)


def copy_reports(folder: Path, target: Path) -> None:
    """Copy the reports and their pictures, as they lie in the folder."""
    target.mkdir(parents=True)
    for report in REPORT.findall(PAGE.read_text("utf-8")):
        for file in (f"{report}.html", f"{report}.png"):
            if (folder / file).exists():
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / file, target / file)


if __name__ == "__main__":
    train(Path(sys.argv[1]).resolve())

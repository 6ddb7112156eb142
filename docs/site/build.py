"""Build the documentation site with Sphinx.

    python docs/site/build.py [--out docs/_build/html] [--gallery docs/_build/gallery] [--links]

The pages are those of docs/, and some from elsewhere in the repository. They are laid out in a
folder of their own, where the API reference, the charts and the gallery are added to them; their
links lead to each other, and to GitHub where the site has no such page.
"""

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

import charts
import gallery
import reference
from sphinx.cmd.build import main as sphinx

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
GITHUB = "https://github.com/feedax/feedax"
ELSEWHERE = {
    "benchmarks.md": ROOT / "benchmarks" / "README.md",
    "changes.md": ROOT / "CHANGELOG.md",
    "contributing.md": ROOT / "CONTRIBUTING.md",
}
"""Pages that lie outside of docs/, by their names on the site."""
NOTEBOOK = DOCS / "tutorial.md"
"""Its text; the site shows the notebook."""
LINK = re.compile(r"(?<=\]\()(?!https?:|#|data:)([^)#\s]+)")
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def pages() -> dict[str, Path]:
    """Where each page of the site comes from, by its name on the site."""
    own = {page.name: page for page in sorted(DOCS.glob("*.md")) if page != NOTEBOOK}
    return own | ELSEWHERE


def relinked(text: str, page: Path) -> str:
    """A page whose links lead to pages and pictures of the site, or else to GitHub.

    Raises:
        SystemExit: a link leads nowhere.
    """
    places = {source: name for name, source in pages().items()} | {NOTEBOOK: "tutorial.ipynb"}

    def target(link: re.Match[str]) -> str:
        file = Path(os.path.normpath(page.parent / link[1]))
        if file in places:
            return places[file]
        if not file.exists():
            sys.exit(f"{page.relative_to(ROOT)}: a link leads to {link[1]}, which is not there")
        if file.is_relative_to(DOCS):
            return link[1]
        return f"{GITHUB}/blob/main/{file.relative_to(ROOT)}"

    kept = CODE.findall(text)
    parts = [LINK.sub(target, part) for part in CODE.split(text)]
    return "".join(part + code for part, code in zip(parts, [*kept, ""], strict=True))


def lay_out(folder: Path, reports: Path) -> None:
    """Write all that Sphinx reads into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    record = ELSEWHERE["benchmarks.md"].read_text("utf-8")
    for name, source in pages().items():
        text = relinked(source.read_text("utf-8"), source)
        text = gallery.with_reports(charts.with_charts(text, record), reports)
        (folder / name).write_text(text, "utf-8")
    shutil.copy(NOTEBOOK.with_suffix(".ipynb"), folder)
    shutil.copytree(DOCS / "images", folder / "images")
    for file in (DOCS / "conf.py", DOCS / "site" / "site.css"):
        shutil.copy(file, folder)
    gallery.copy_reports(reports, folder / "extra" / "gallery")
    reference.write(folder / "api")


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the documentation site.")
    parser.add_argument("--out", type=Path, default=DOCS / "_build" / "html")
    parser.add_argument("--gallery", type=Path, default=DOCS / "_build" / "gallery")
    parser.add_argument("--links", action="store_true", help="look up links to other sites instead")
    asked = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"  # the reference imports JAX, and computes nothing
    source = asked.out.with_name(f"{asked.out.name}-source")
    lay_out(source, asked.gallery)
    shutil.rmtree(asked.out, ignore_errors=True)
    options = ["--quiet", "--fail-on-warning", "--keep-going", "-d", str(source / ".doctrees")]
    builder = ["-b", "linkcheck" if asked.links else "html"]
    code = sphinx([*options, *builder, str(source), str(asked.out)])
    if code == 0 and not asked.links:
        print(f"The site is built: {asked.out / 'index.html'}")
    sys.exit(code)


if __name__ == "__main__":
    main()

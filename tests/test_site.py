"""The documentation site: no public name is missing, links lead somewhere, and a browser reads it.

It is built without the gallery, whose networks are trained by a slow test.
"""

import importlib
import re
import shutil
import subprocess
import sys
import types
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import PHONE, opened

import feedax

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "docs" / "site" / "build.py"
MODULES = [name for name in feedax.__all__ if isinstance(getattr(feedax, name), types.ModuleType)]
REPORT = "<!doctype html><title>A report</title>"


def build(folder: Path, gallery: Path) -> Path:
    command = [sys.executable, str(BUILD), "--out", folder / "html", "--gallery", gallery]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "html"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, and in its gallery one report."""
    folder = tmp_path_factory.mktemp("site")
    run = folder / "gallery" / "tutorial"
    run.mkdir(parents=True)
    (run / "report.html").write_text(REPORT)
    shutil.copy(ROOT / "docs" / "images" / "curves.png", run / "report.png")
    return build(folder, folder / "gallery")


class Page(HTMLParser):
    """What a page of the site links to, asks for, and can be linked to by."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.asked: list[str] = []
        self.anchors: set[str] = set()
        self.bars: list[tuple[float, ...]] = []
        self.feed(file.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found["href"] != "#":  # furo's, to the search on this page
            self.asked.append(found["href"])
        if "src" in found:
            self.asked.append(found["src"])
        if "data-most" in found:
            self.bars.append(tuple(float(found[f"data-{x}"]) for x in ("value", "least", "most")))


@pytest.fixture(scope="module")
def pages(site):
    return {file: Page(file) for file in site.rglob("*.html")}


def inventory(site: Path) -> set[str]:
    """The names that the site describes."""
    content = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(content).decode().splitlines()
    return {line.split(" ")[0] for line in lines if " py:" in line}


@pytest.mark.parametrize("module", ["feedax", *(f"feedax.{name}" for name in MODULES)])
def test_no_public_name_is_missing_from_the_reference(site, module):
    described = inventory(site)
    found = importlib.import_module(module)
    names = getattr(found, "__all__", None) or [
        name
        for name, value in vars(found).items()
        if isinstance(value, type) and issubclass(value, Exception)
    ]
    assert len(names) > 3
    assert module in described
    for name in names:
        is_feedaxs = name in feedax.__all__ and getattr(feedax, name) is getattr(found, name)
        assert (f"feedax.{name}" if is_feedaxs else f"{module}.{name}") in described


def test_links_and_pictures_lead_to_a_file_and_an_anchor_that_are_there(site, pages):
    assert len(pages) > 20
    internal = 0
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme == "https", f"{file.name}: {link}"
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            assert target.is_file(), f"{file.name}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{file.name}: {link}"
            internal += 1
        for asked in page.asked:
            parts = urlsplit(asked)
            assert (parts.scheme, parts.netloc) == ("", ""), f"{file.name}: {asked}"
            assert (file.parent / unquote(parts.path)).is_file(), f"{file.name}: {asked}"
    assert internal > 500


def test_the_charts_have_the_figures_of_the_recorded_tables(site, pages):
    record = []
    lines = (ROOT / "benchmarks" / "README.md").read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\|[^|]*\|[^|]*\| least \| most \|", line):
            for row in lines[number + 2 :]:
                if not row.startswith("|"):
                    break
                cells = row.replace(",", "").split("|")[2:5]
                record.append(tuple(map(float, cells)))
    assert len(record) > 100
    # Label's commas may go, too; figures are what is compared.
    assert pages[site / "benchmarks.html"].bars == record
    assert pages[site / "index.html"].bars[0] == (1_662_989, 1_538_239, 1_712_595)


def test_the_notebook_is_shown_with_its_outputs_and_its_picture(site):
    page = (site / "tutorial.html").read_text()
    assert "epoch 7 in 1.3 s: training 0.97377, test 0.9669" in page
    assert len(re.findall(r'<img [^>]*src="_images/\w+\.png"', page)) == 1
    address = "https://colab.research.google.com/github/feedax/feedax/blob/main/docs/tutorial.ipynb"
    assert f'href="{address}"' in page


def test_the_gallery_shows_the_reports_that_there_are_and_says_what_makes_the_others(site):
    page = (site / "gallery.html").read_text()
    assert page.count('<a class="report"') == 1
    assert page.count("puts the report here.") == 4
    assert (site / "gallery" / "tutorial" / "report.html").read_text() == REPORT


def test_a_link_that_leads_nowhere_ends_the_build_with_a_sentence(monkeypatch):
    monkeypatch.syspath_prepend(BUILD.parent)
    relinked = importlib.import_module("build").relinked
    readme = ROOT / "benchmarks" / "README.md"
    assert relinked("[x](../docs/loader.md#plans)", readme) == "[x](loader.md#plans)"
    assert relinked("[x](sweep.py)\n", readme) == (
        "[x](https://github.com/feedax/feedax/blob/main/benchmarks/sweep.py)\n"
    )
    with pytest.raises(SystemExit) as stopped:
        relinked("[x](nowhere.md)", readme)
    assert str(stopped.value) == (
        "benchmarks/README.md: a link leads to nowhere.md, which is not there"
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_fit_a_phone_and_ask_nothing_of_the_network(browser, pages, site, dark):
    with opened(browser, dark=dark) as page:
        page.set_viewport_size(PHONE)
        for file in sorted(pages)[dark::2]:
            page.goto(file.as_uri())
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= PHONE["width"], file.name


@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
def test_search_finds_a_class_without_a_server(browser, site, phone):
    with opened(browser) as page:
        if phone:
            page.set_viewport_size(PHONE)
        page.goto((site / "index.html").as_uri())
        if phone:
            page.locator("label.nav-overlay-icon").first.click()
        page.locator("input[name=q]").fill("NumpyLoader")
        page.locator("input[name=q]").press("Enter")
        found = page.locator("ul.search li a", has_text="feedax.NumpyLoader").first
        found.wait_for()
        found.click()
        page.wait_for_url("**/api/feedax.html#feedax.NumpyLoader")
        assert page.locator("[id='feedax.NumpyLoader']").is_visible()


def test_charts_keep_their_colours_apart_in_the_dark(browser, site):
    colours = set()
    for dark in (False, True):
        with opened(browser, dark=dark) as page:
            page.goto((site / "index.html").as_uri())
            for bar in (".bar.ours rect", ".bar:not(.ours) rect"):
                colours.add(page.locator(bar).first.evaluate("bar => getComputedStyle(bar).fill"))
    assert len(colours) == 4


@pytest.mark.slow
def test_the_gallerys_commands_leave_the_reports_that_it_shows(browser, tmp_path):
    gallery = tmp_path / "gallery"
    script = BUILD.with_name("gallery.py")
    subprocess.run([sys.executable, str(script), str(gallery)], check=True)
    site = build(tmp_path, gallery)
    with opened(browser) as page:
        page.goto((site / "gallery.html").as_uri())
        assert page.locator("a.report img").count() == 5
        addresses = page.locator("a.report").evaluate_all("links => links.map(a => a.href)")
        for address in addresses:
            page.goto(address)
            assert page.locator("h1").count() == 1


@pytest.mark.slow
def test_make_assets_fetches_the_scripts_that_the_package_carries(tmp_path):
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    done = subprocess.run(
        ["make", "assets", f"ASSETS={tmp_path}"], cwd=ROOT, capture_output=True, text=True
    )
    if "npm error network" in done.stderr:
        pytest.skip("the npm registry cannot be reached")
    assert done.returncode == 0, done.stderr
    carried = ROOT / "src" / "feedax" / "web" / "uplot"
    names = {file.name for file in carried.iterdir()}
    assert names == {file.name for file in tmp_path.iterdir()}
    for name in names:
        assert (tmp_path / name).read_bytes() == (carried / name).read_bytes()

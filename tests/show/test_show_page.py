"""The page in a real browser."""

import base64
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from browser import PHONE, opened
from helpers import save_digits
from PIL import Image, ImageDraw
from playwright.sync_api import expect
from shown_runs import make_run, row, served

from feedax.cli.show import open_run
from feedax.report.run_folder import RunFolder

CHART = "name => { const {x, series} = document.getElementById(name).chart; return {x, series}; }"


@pytest.fixture
def seven(tmp_path):
    """A photograph, as it were, of a written seven."""
    image = Image.new("RGB", (400, 500), "white")
    strokes = [(90, 100), (310, 100), (180, 420)]
    ImageDraw.Draw(image).line(strokes, (20, 20, 60), 34, "curve")
    path = tmp_path / "seven.png"
    image.save(path)
    return path


def until(page, holds):
    """Wait for a condition of the page; its policy allows no expression to be evaluated in it."""
    while not holds():
        page.wait_for_timeout(50)


def epochs(page):
    return page.evaluate("document.getElementById('loss').chart?.x.length ?? 0")


def labels(page):
    return [*drawn(page, "loss")]


def drawn(page, name):
    """The lines of a chart by their labels: (epoch, value) of each point."""
    chart = page.evaluate(CHART, name)
    return {
        one["label"]: [
            (x, value)
            for x, value in zip(chart["x"], one["values"], strict=True)
            if value is not None
        ]
        for one in chart["series"]
    }


def test_a_run_is_followed_while_it_trains(browser, folder, tmp_path):
    data = save_digits(tmp_path / "digits.npz", 320, 100)
    words = ["--dataset", f"npz:{data}", "--epochs", "100000", "--hidden", "8", "--no-report"]
    with served(folder) as (_, address), opened(browser, allowed=address) as page:
        page.goto(address)
        page.get_by_text("There are no runs in this folder yet.").wait_for()
        training = subprocess.Popen(
            [sys.executable, "-m", "feedax", "train", *words, "--out", str(folder / "a")],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            page.locator("#runs .running").wait_for(timeout=120_000)
            until(page, lambda: epochs(page) >= 40)  # it is drawn anew there, without points
            plot, before = page.query_selector("#loss canvas"), epochs(page)
            until(page, lambda: epochs(page) > before)
            # It grew in place.
            assert plot.evaluate("element => element.isConnected")
            assert page.locator("#runs .running").text_content() == "● running"
        finally:
            training.kill()
            training.communicate()
        page.locator("#runs .stopped").wait_for()
        rows = RunFolder.open(folder / "a").rows()
        count = f"{len(rows)} / 100000"
        page.get_by_role("cell", name=count, exact=True).wait_for()
        until(page, lambda: epochs(page) == len(rows))
        for measure in ("loss", "accuracy"):
            assert drawn(page, measure) == {
                "training set": [(one["epoch"], one[f"train_{measure}"]) for one in rows],
                "test set": [(one["epoch"], one[f"test_{measure}"]) for one in rows],
            }


def test_ticked_runs_are_compared(browser, folder):
    for i, name in enumerate("abc"):
        started = f"2026-01-31T14:25:0{i}+0000"
        run = make_run(folder / name, epochs=i + 1, planned=i + 1, started=started)
        (run.path / "report.html").write_text(f"<title>the report of {name}</title>")
    with served(folder) as (_, address), opened(browser, allowed=address) as page:
        page.goto(address)
        page.wait_for_selector("#loss canvas")
        names = page.locator("#runs tbody tr td:first-child")
        assert names.all_text_contents() == ["c", "b", "a"]
        states = page.locator("#runs .state").all_text_contents()
        assert states == ["✓ ended"] * 3
        assert [*drawn(page, "loss")] == ["training set", "test set"]  # of the newest alone
        page.get_by_label("a", exact=True).check()
        page.get_by_label("b", exact=True).check()
        until(page, lambda: labels(page) == ["c", "a", "b"])
        lines = drawn(page, "accuracy")
        assert lines == {
            name: [(epoch, row(epoch)["test_accuracy"]) for epoch in range(i + 1)]
            for i, name in enumerate("abc")
        }
        series = page.evaluate(CHART, "loss")["series"]
        assert len({one["colour"] for one in series}) == 3
        assert len({json.dumps(one["dash"]) for one in series}) == 3
        table = page.locator("#compare tr").all_inner_texts()
        assert [line.split() for line in table] == [["c", "a", "b"], ["epochs", "3", "1", "2"]]
        page.get_by_label("of the").select_option("train")
        train = [(epoch, row(epoch)["train_loss"]) for epoch in range(3)]
        assert drawn(page, "loss")["c"] == train
        # One is removed, as somebody may do, and another one unticked.
        shutil.rmtree(folder / "c")
        until(page, lambda: labels(page) == ["a", "b"])
        page.get_by_label("b", exact=True).uncheck()
        until(page, lambda: labels(page) == ["training set", "test set"])
        assert drawn(page, "loss")["training set"] == train[:1]
        assert page.locator("#compare").is_hidden()
        with page.expect_popup() as popup:
            page.get_by_role("link", name="report").last.click()
        expect(popup.value).to_have_title("the report of a")


def test_dropped_pictures_are_read(browser, folder, seven, tmp_path):
    run = make_run(folder / "a", epochs=1)
    Image.new("RGB", (300, 200), "white").save(tmp_path / "blank.png")
    trained = open_run(run.path)
    prepared = trained.prepare(seven)
    expected = trained.probabilities(prepared.pixels)
    with served(folder) as (_, address), opened(browser, allowed=address) as page:
        page.set_viewport_size(PHONE)
        page.goto(address)
        page.locator("#drop").wait_for()
        page.locator("#drop").evaluate(
            """(element, files) => {
                const dataTransfer = new DataTransfer();
                for (const [name, content] of files) {
                    const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
                    dataTransfer.items.add(new File([bytes], name));
                }
                element.dispatchEvent(new DragEvent("drop", {dataTransfer, bubbles: true}));
            }""",
            [
                (name, base64.b64encode((tmp_path / name).read_bytes()).decode())
                for name in ("seven.png", "blank.png")
            ],
        )
        cards = page.locator(".reading")
        page.get_by_text("the picture must show something, and it is blank").wait_for()
        assert cards.locator("h3").all_text_contents() == ["seven.png", "blank.png"]
        answer = cards.first.evaluate("card => ({...card.answer, pixels: [...card.answer.pixels]})")
        np.testing.assert_array_equal(np.float32(answer["probabilities"]), expected)
        assert answer["pixels"] == prepared.pixels.ravel().tolist()
        seen = cards.first.locator("canvas").evaluate(
            "it => [...it.getContext('2d').getImageData(0, 0, 28, 28).data]"
        )
        assert seen[::4] == answer["pixels"]
        shares = cards.first.locator(".share").all_text_contents()
        assert shares == [f"{100 * share:.1f} %" for share in expected.astype(float)]
        notes = cards.first.locator("li").all_text_contents()
        assert notes[: len(prepared.notes)] == [*prepared.notes]
        # A file that is chosen is read as well, above the others.
        page.locator("#drop input").set_input_files(seven)
        page.locator(".reading canvas").nth(1).wait_for()
        assert cards.count() == 3
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_what_a_run_says_is_text(browser, folder):
    evil = "<img src=x onerror=alert(1)>"
    run = make_run(folder / evil.replace("/", ""), epochs=1, dataset=evil, class_names=[evil] * 10)
    (folder / "torn").mkdir()
    (folder / "torn/config.json").write_text(json.dumps({"format": evil}))
    with served(folder) as (_, address), opened(browser, dark=True, allowed=address) as page:
        page.goto(address)
        page.wait_for_selector("#loss canvas")
        row_of = page.locator("#runs tr", has_text=run.path.name)
        assert row_of.locator("td").nth(2).text_content() == evil
        assert page.locator("img").count() == 0
        assert page.locator("#runs .torn").text_content() == "▲ torn"
        assert evil in page.locator("#runs .note").text_content()


def test_a_digit_that_is_written_is_read(browser, folder, tmp_path):
    run = make_run(folder / "a", epochs=1)
    with served(folder) as (_, address), opened(browser, allowed=address) as page:
        page.set_viewport_size(PHONE)
        page.goto(address)
        page.get_by_role("button", name="Write something").click()
        paper = page.locator("#canvas .paper")
        paper.scroll_into_view_if_needed()
        box = paper.bounding_box()
        for i, (x, y) in enumerate([(0.28, 0.2), (0.74, 0.2), (0.42, 0.88)]):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=3)
            page.mouse.down() if i == 0 else None
        page.mouse.up()
        url = paper.evaluate("it => it.toDataURL('image/png')")
        (tmp_path / "seven.png").write_bytes(base64.b64decode(url.partition(",")[2]))
        trained = open_run(run.path)
        prepared = trained.prepare(tmp_path / "seven.png")
        canvas = page.locator("#canvas .canvas")

        def result():
            return canvas.evaluate(
                "it => it.result && {...it.result, pixels: [...it.result.pixels]}"
            )

        # While it is written it is read, and the last time when it is whole.
        until(page, lambda: (result() or {}).get("pixels") == prepared.pixels.ravel().tolist())
        expected = trained.probabilities(prepared.pixels)
        np.testing.assert_array_equal(np.float32(result()["probabilities"]), expected)
        assert f"The network reads “{expected.argmax()}”" in canvas.inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]

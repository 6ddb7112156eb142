"""report.html, opened in a real browser as a person opens it: from the disk, without a network."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import PHONE, opened
from helpers import batches, linear, problem, save_digits
from PIL import Image
from shown_runs import make_run

import feedax
from feedax.cli import main
from feedax.cli.report import flags_of
from feedax.report.content import RunReport
from feedax.report.page import write_page
from feedax.report.statistics import wilson
from feedax.report.sweep_folder import SweepFolder

CHARTS = """() => Object.fromEntries([...document.querySelectorAll("[data-chart]")].map(
  (element) => [element.chart.title, element.chart]))"""

TOLD = """(epoch) =>
  document.querySelector('[data-chart=curves-0] .u-value').textContent === epoch"""


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def series(chart: dict) -> dict[str, list[float]]:
    return {one["label"]: one["values"] for one in chart["series"]}


def short(value: float) -> str:
    """A number of a legend: four digits of it."""
    return f"{float(f'{value:.4g}')}"


def test_the_page_shows_what_the_run_did(reported: Path, browser, mnist_test) -> None:
    history = rows(reported)
    page_size = (reported / "report.html").stat().st_size
    assert page_size < 5_000_000
    with opened(browser) as page:
        page.goto(f"file://{reported}/report.html")
        # The curves are those of metrics.jsonl.
        charts = page.evaluate(CHARTS)
        for name in ("loss", "accuracy"):
            lines = series(charts[name])
            for column, label in (
                (name, f"{name} while training"),
                (f"train_{name}", f"training set {name}"),
                (f"test_{name}", f"test set {name}"),
            ):
                assert lines[label] == [row[column] for row in history]
            assert charts[name]["x"] == [0, 1]
        assert series(charts["learning rate"])["learning rate"] == [0.01, 0.01]
        # The headline is their last accuracy, with its interval.
        right = round(history[-1]["test_accuracy"] * 10_000)
        low, high = wilson(right, 10_000)
        assert page.inner_text(".result") == (
            f"{right / 100:.2f} % accuracy on 10,000 examples of the test set"
        )
        assert f"95 % interval {100 * low:.2f} % to {100 * high:.2f} %" in page.inner_text("header")
        assert "feedax train --hidden 64 --epochs 2" in page.inner_text("header pre")
        # The confusion matrix counts each test image once, and its diagonal is what was right.
        counts = page.eval_on_selector_all(
            ".confusion td", "(cells) => cells.map((cell) => Number(cell.textContent))"
        )
        matrix = np.reshape(counts, (10, 10))
        np.testing.assert_array_equal(matrix.sum(1), np.bincount(mnist_test.targets.numpy()))
        assert np.trace(matrix) == right
        page.click("#shares")
        share = page.inner_text(".confusion tbody tr:first-child td")
        assert share == f"{100 * matrix[0, 0] / matrix[0].sum():.2f} %"
        # The mistakes are pictures of the test set.
        assert page.locator("#mistakes figure").count() == 40
        assert page.locator("#least-certain figure").count() == 20
        figure = page.locator("#mistakes figure").first
        index = int(re.search(r"\d+", figure.get_attribute("title"))[0])
        data = base64.b64decode(figure.locator("img").get_attribute("src").partition(",")[2])
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(data))), mnist_test.data[index]
        )
        assert f"is {mnist_test.classes[int(mnist_test.targets[index])]}" in figure.inner_text()
        # Pointing at a chart tells its values; away from it, the last ones are told.
        legend = page.locator("[data-chart=curves-0] .u-legend")
        page.wait_for_function(TOLD, arg="1")
        assert short(history[1]["test_loss"]) in legend.inner_text()
        page.hover("[data-chart=curves-0] .u-over", position={"x": 2, "y": 40})
        page.wait_for_function(TOLD, arg="0")
        assert short(history[0]["test_loss"]) in legend.inner_text()
        button = page.locator("[data-chart=curves-0] button")
        button.click()
        assert button.get_attribute("aria-pressed") == "true"


RESULT = "() => document.getElementById('drawing').result"
NEXT_FRAMES = """() => new Promise((done) =>
  requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"""


def draw(page, stroke: list[tuple[float, float]]) -> None:
    """Draw with the mouse; points are fractions of the canvas's sides."""
    canvas = page.locator("#drawing canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for i, (x, y) in enumerate(stroke):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=8)
        if i == 0:
            page.mouse.down()
    page.mouse.up()


SEVEN = [(0.3, 0.25), (0.7, 0.25), (0.45, 0.8)]
THREE = [
    (0.3, 0.25), (0.5, 0.16), (0.68, 0.3), (0.5, 0.46), (0.7, 0.62), (0.55, 0.82), (0.3, 0.75)
]  # fmt: skip


def test_the_canvas_reads_as_feedax_predict_does(reported: Path, browser, tmp_path, capsys) -> None:
    with opened(browser) as page:
        page.goto(f"file://{reported}/report.html")
        for name, stroke in (("7 - seven", SEVEN), ("3 - three", THREE)):
            draw(page, stroke)
            page.evaluate(NEXT_FRAMES)
            read = page.evaluate(RESULT)
            png = page.eval_on_selector("#drawing canvas", "(canvas) => canvas.toDataURL()")
            (tmp_path / "drawn.png").write_bytes(base64.b64decode(png.partition(",")[2]))
            capsys.readouterr()
            assert main(["predict", str(reported), str(tmp_path / "drawn.png")]) == 0
            said = re.findall(r"(\d - \w+) with probability ([\d.]+)", capsys.readouterr().out)
            assert said[0][0] == name
            assert said[0][0] in page.inner_text("#drawing [role=status]")
            for likely, probability in said:
                ours = read["probabilities"][int(likely[0])]
                assert ours == pytest.approx(float(probability), abs=1e-3)
            page.click("#drawing button:text('Clear')")
            page.evaluate(NEXT_FRAMES)
            assert page.evaluate(RESULT) is None


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_fits_a_phone_and_a_printer(reported: Path, browser, dark: bool) -> None:
    with opened(browser, dark) as page:
        page.set_viewport_size(PHONE)
        page.goto(f"file://{reported}/report.html")
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        paper = "getComputedStyle(document.body).backgroundColor"
        assert page.evaluate(paper) == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")
        page.emulate_media(media="print")
        assert page.evaluate(paper) == "rgb(255, 255, 255)"
        assert not page.locator("[data-chart] button").first.is_visible()


def test_several_runs_are_compared(reported: Path, browser, tmp_path: Path) -> None:
    other = tmp_path / "other"
    words = ["--hidden", "32", "--epochs", "1", "--learning-rate", "0.02", "--no-report"]
    assert main(["train", *words, "--out", str(other)]) == 0
    assert not (other / "report.html").exists()
    out = tmp_path / "compared.html"
    assert main(["report", str(reported), str(other), "--out", str(out)]) == 0
    with opened(browser) as page:
        page.goto(f"file://{out}")
        charts = page.evaluate(CHARTS)
        lines = series(charts["test set accuracy"])
        assert lines["run"] == [row["test_accuracy"] for row in rows(reported)]
        assert lines["other"] == [rows(other)[0]["test_accuracy"], None]
        different = page.eval_on_selector_all(
            "#differences tbody tr", "(some) => some.map((row) => row.innerText.split('\\t'))"
        )
        assert different == [
            ["--hidden", "(64,)", "(32,)"],
            ["--epochs", "2", "1"],
            ["--learning-rate", "0.01", "0.02"],
        ]
        first = "#results tbody tr:first-child td:first-child"
        page.click("#results button:text('epochs')")
        assert page.inner_text(first) == "other"
        page.click("#results button:text('epochs')")
        assert page.inner_text(first) == "run"


def test_a_sweep_has_every_network_as_a_dot(browser, tmp_path: Path) -> None:
    digits = save_digits(tmp_path / "digits.npz", 320, 100)
    sweep = tmp_path / "sweep"
    words = ["--learning-rate", "0.003", "0.03", "--seeds", "3", "--epochs", "2", "--hidden", "8"]
    data = ["--dataset", f"npz:{digits}", "--scale-pixels", "--initialisation", "he"]
    assert main(["sweep", *words, *data, "--out", str(sweep)]) == 0
    records = [json.loads(line) for line in (sweep / "networks.jsonl").read_text().splitlines()]
    with opened(browser) as page:
        page.goto(f"file://{sweep}/report.html")
        assert page.locator(".dots i").count() == 6
        charts = page.evaluate(CHARTS)
        points = charts["learning rate against test set accuracy"]
        expected = sorted(
            (one["setting"]["learning_rate"], one["result"]["test_accuracy"]) for one in records
        )
        pairs = list(zip(points["x"], series(points)["each network"], strict=True))
        assert pairs == [*map(tuple, expected)]
        lines = series(charts["accuracy while training"])
        mean = np.mean([one["rows"][1]["accuracy"] for one in records[:3]])
        assert lines["learning_rate=0.003"][1] == pytest.approx(mean)
        best = max(records, key=lambda one: one["result"]["test_accuracy"])
        assert page.inner_text("#network h2").startswith(best["name"])
        accuracy = best["result"]["test_accuracy"]
        assert page.inner_text(".result").startswith(f"{100 * accuracy:.2f} %")


def test_numbers_have_residuals_and_no_classes(browser, tmp_path: Path) -> None:
    x = np.linspace(-1, 1, 50, dtype=np.float32)[:, None]
    y = 3 * x[:, 0] + np.float32(0.5)
    params, history = feedax.fit(
        lambda w, x: w[0] * x[0] + w[1], np.zeros(2, np.float32), [(x, y)], epochs=3,
        loss=lambda prediction, target: (prediction - target) ** 2,
    )  # fmt: skip
    found = feedax.predictions(lambda w, x: w[0] * x[0] + w[1], params, [(x, y)])
    run = RunReport(title="a line", history=history, predictions=found, params=params)
    write_page(tmp_path / "report.html", "a line", run=run)
    determined = 1 - np.square(found.outputs - y).sum() / np.square(y - y.mean()).sum()
    with opened(browser) as page:
        page.goto(f"file://{tmp_path}/report.html")
        assert page.inner_text(".result strong") == f"R² {determined:.4f}"
        points = page.evaluate(CHARTS)["predicted against true"]
        np.testing.assert_allclose(points["x"], y, rtol=1e-6)
        np.testing.assert_allclose(series(points)["predicted"], found.outputs, rtol=1e-6)
        assert page.locator("#classes").count() == 0
        assert page.locator("#mistakes tbody tr").count() == 40


def test_text_of_others_is_shown_as_text(browser, tmp_path: Path) -> None:
    x, y = problem()
    w = np.zeros((3, 6), np.float32)
    names = ["</script><script>boom()</script>", "<img src=x onerror=boom()>", "{{ 7 * 7 }}"]
    run = RunReport(
        title="a title", history=[{"epoch": 0, "seconds": 1.0, "loss": 1.0}], class_names=names,
        predictions=feedax.predictions(linear, w, batches(x, y, 16)), command="<b>rm</b>",
        published=("</script>", {"train_loss": [1.0]}), facts={"<i>": {"<u>": "<s>"}},
    )  # fmt: skip
    write_page(tmp_path / "report.html", names[0], run=run)
    with opened(browser) as page:
        page.goto(f"file://{tmp_path}/report.html")
        assert page.inner_text("h1") == names[0]
        assert page.inner_text("header pre") == "<b>rm</b>"
        shown = page.eval_on_selector_all(".confusion thead th", "(a) => a.map((b) => b.innerText)")
        assert shown[1:] == names
        # Rows of numbers are no pictures.
        assert page.locator("#mistakes td.text").first.inner_text().count(",") == 5
        assert f"training set loss, {'</script>'}" in series(page.evaluate(CHARTS)["loss"])


def test_a_page_that_cannot_be_written_fails_no_run(reported: Path, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    shutil.copytree(reported, run)
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    words = ["train", "--resume", str(run), "--epochs", "3"]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert (
        f"feedax train: report.html could not be written (report: {run}/report.html must be "
        "writable, and the system says 'Is a directory'; choose another folder); try again with: "
        f"feedax report {run}\n"
    ) in said
    assert f"done; the parameters, the metrics and curves.png are in {run}" in said


def test_a_page_without_its_data_set_says_so(tmp_path: Path, capsys) -> None:
    digits = save_digits(tmp_path / "digits.npz", 320, 100)
    run = tmp_path / "run"
    words = ["--epochs", "1", "--hidden", "8", "--dataset", f"npz:{digits}", "--out", str(run)]
    assert main(["train", *words]) == 0
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    out, said = capsys.readouterr()
    assert out == f"{run}/report.html\n"
    assert said == (
        "feedax report: the page has no predictions, since there is no data set (run folder: data "
        "outside of a run's folder must be named by you, not by a file, and the dataset of "
        f"{run} is npz:{digits}; add --dataset npz:{digits})\n"
    )
    assert 'id="mistakes"' not in (run / "report.html").read_text()
    # One that is named and not there is an error, and the page stays as it is.
    before = (run / "report.html").read_bytes()
    assert main(["report", str(run), "--dataset", f"npz:{tmp_path}/none.npz"]) == 1
    assert (run / "report.html").read_bytes() == before
    assert main(["report", str(run), "--dataset", f"npz:{digits}"]) == 0
    assert 'id="mistakes"' in (run / "report.html").read_text()


def test_runs_of_one_name_are_told_apart(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("a", "b"):
        make_run(tmp_path / place / "run", epochs=1)
    assert main(["report", "a/run", "b/run", "--out", "compared.html"]) == 0
    assert '<p class="faint">a/run, b/run</p>' in Path("compared.html").read_text()


def test_whatever_a_configuration_says_there_is_a_page(tmp_path: Path) -> None:
    words = ["--epochs", "3", "--hidden", "--dataset", "npz:nowhere.npz"]
    run = make_run(tmp_path / "run", arguments=words, device="x", versions=[1], epochs=1)
    assert main(["report", str(run.path)]) == 0
    assert "? x ?" in run.report_path.read_text()


def test_the_command_of_a_network_of_a_sweep_has_its_seed(tmp_path: Path) -> None:
    settings = [{"setting": {"epochs": 2}, "arguments": ["--epochs", "2"]}]
    config = {"made_by": "feedax sweep", "settings": settings, "dataset": "mnist"}
    sweep = SweepFolder.create(config, path=tmp_path / "sweep")
    flags = flags_of(sweep, {"name": "epochs=2,seed=3", "setting": {"epochs": 2}, "seed": 3})
    assert (flags.training.epochs, flags.data.seed) == (2, 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "at least one RUN must be given; see feedax report --help"),
        (
            ["a", "b"],
            "--out must name the page that compares several runs; give --out compared.html",
        ),
        (
            ["a", "b", "--out", "c.html", "--dataset", "mnist"],
            "--dataset and --root are for the page of one run, and there are 2; leave them out",
        ),
        (["a", "--out", "b.pdf"], "--out must name an .html file, not b.pdf; call it report.html"),
    ],
)
def test_wrong_words_are_refused(words: list[str], said: str, capsys) -> None:
    assert main(["report", *words]) == 2
    assert capsys.readouterr().err == f"feedax report: {said}\n"

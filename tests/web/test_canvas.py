"""Somebody writes a digit on the canvas of a page, and the network reads what `predict` reads."""

import base64
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from browser import PHONE, opened
from torch.utils.data import Subset

import feedax
from feedax.errors import ImageError
from feedax.predicting import canvas_data, prepare_image
from feedax.train.page_program import network_program
from feedax.train.predictions import softmax
from feedax.web import content_of, script_json

DIGITS = [str(digit) for digit in range(10)]
THREE = [[(0.3, 0.25), (0.5, 0.15), (0.7, 0.27), (0.62, 0.42), (0.45, 0.48), (0.62, 0.53),
          (0.72, 0.7), (0.52, 0.85), (0.28, 0.75)]]  # fmt: skip
SEVEN = [[(0.28, 0.2), (0.5, 0.2), (0.74, 0.2), (0.62, 0.45), (0.5, 0.65), (0.42, 0.88)]]


@dataclass
class Network:
    """A network of the flat pixels of MNIST."""

    params: list
    program: dict

    def probabilities(self, pixels):
        return softmax(np.asarray(predict(self.params, np.ravel(pixels).astype(np.float32))))


def predict(params, x):
    return feedax.mlp(params, x, divisor=255.0)


@pytest.fixture(scope="module")
def network(mnist_train, mnist_test):
    few = Subset(mnist_train, range(12_800))
    loader = feedax.NumpyLoader(few, 128, shuffle=True, seed=0)
    params, _ = feedax.fit(
        predict,
        feedax.init_mlp([784, 512, 512, 10], jax.random.key(0)),
        loader,
        optimizer=optax.adam(1e-3),
        epochs=1,
    )
    x = np.stack([mnist_test[i][0] for i in range(1000)])
    program = network_program(predict, params, x[0], inputs=x, most_bytes=2_000_000)
    return Network(params, program)


def write_page(path: Path, data, more: str = "") -> Path:
    """A page with nothing but a canvas."""
    scripts = "".join(
        f"<script>{content_of(name)}</script>"
        for name in ("charts.js", "network.js", "drawing.js", "canvas.js")
    )
    path.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>canvas</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        f'<link rel="icon" href="data:,"><style>{content_of("style.css")}</style>'
        f'<main><h1>Write a digit</h1><div id="canvas"></div></main>'
        f'<script type="application/json" id="data">{script_json(data)}</script>{scripts}'
        f'<script>const canvas = document.getElementById("canvas"); {more}'
        "feedax.canvas(canvas, {...feedax.data(), ...window.more});</script>"
    )
    return path


def stroke(page, strokes):
    """Draw with the mouse; places are fractions of the paper."""
    box = page.locator(".paper").bounding_box()
    for points in strokes:
        for i, (x, y) in enumerate(points):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=3)
            if i == 0:
                page.mouse.down()
        page.mouse.up()


def settle(page):
    """Until all that was drawn is read."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")


def result(page):
    settle(page)
    return page.evaluate(
        "() => canvas.result && {pixels: Array.from(canvas.result.pixels), "
        "probabilities: Array.from(canvas.result.probabilities)}"
    )


def save_png(page, path: Path) -> Path:
    url = page.evaluate("() => document.querySelector('.paper').toDataURL('image/png')")
    path.write_bytes(base64.b64decode(url.partition(",")[2]))
    return path


def read(page):
    """What the page says, and the bars as (name, share in percent)."""
    names = page.locator(".bars li > span:first-child").all_inner_texts()
    shares = page.locator(".bars .number").all_inner_texts()
    return page.locator(".said").inner_text(), list(zip(names, shares, strict=True))


def test_a_three_and_a_seven_are_read_while_they_are_written(browser, network, tmp_path):
    data = canvas_data((28, 28), "mnist", DIGITS, network.program)
    with opened(browser) as page:
        page.goto(write_page(tmp_path / "page.html", data).as_uri())
        assert read(page) == ("The bars move as soon as you draw.", [(d, "") for d in DIGITS])
        assert result(page) is None
        for digit, strokes in (("3", THREE), ("7", SEVEN)):
            stroke(page, [strokes[0][:3]])
            begun = result(page)["probabilities"]
            page.get_by_role("button", name="Clear").click()
            stroke(page, strokes)
            found = result(page)
            assert found["probabilities"] != begun  # the bars have moved
            said, bars = read(page)
            share = found["probabilities"][int(digit)]
            assert said.startswith(f"The network reads “{digit}” with a probability of ")
            assert bars[int(digit)][1] == (f"{100 * share:.1f} %" if share < 0.9995 else "100 %")
            likeliest = page.locator(".likeliest")
            assert likeliest.locator("span").first.inner_text() == digit

            image = prepare_image(save_png(page, tmp_path / "drawing.png"), (28, 28), "mnist")
            assert image.pixels.ravel().tolist() == found["pixels"]
            expected = network.probabilities(image.pixels)
            assert np.abs(expected - found["probabilities"]).max() < 1e-3
            # What stands beside the canvas is that image.
            shown = page.evaluate(
                "() => Array.from(document.querySelector('figure canvas').getContext('2d')"
                ".getImageData(0, 0, 28, 28).data).filter((_, i) => i % 4 === 0)"
            )
            assert shown == found["pixels"]
            page.keyboard.press("Tab")
            page.get_by_role("button", name="Clear").press("Enter")
            assert result(page) is None


def test_a_stroke_is_undone_by_the_keyboard(browser, network, tmp_path):
    with opened(browser) as page:
        data = canvas_data((28, 28), "mnist", DIGITS, network.program)
        page.goto(write_page(tmp_path / "page.html", data).as_uri())
        undo = page.get_by_role("button", name="Undo")
        assert undo.is_disabled()
        stroke(page, SEVEN)
        seven = result(page)
        stroke(page, [[(0.3, 0.5), (0.7, 0.55)]])
        assert result(page) != seven
        undo.focus()
        page.keyboard.press("Enter")
        assert result(page) == seven
        undo.press("Enter")
        assert (result(page), undo.is_disabled()) == (None, True)


def test_a_network_of_pixels_from_0_to_1_sees_such(browser, network, tmp_path):
    example = np.zeros((28, 28, 1), np.float32)
    program = network_program(lambda p, x: predict(p, x * 255), network.params, example)
    data = canvas_data((28, 28, 1), "mnist", DIGITS, program, white=1.0)
    with opened(browser) as page:
        page.goto(write_page(tmp_path / "page.html", data).as_uri())
        stroke(page, THREE)
        found = result(page)
    expected = network.probabilities(np.array(found["pixels"]))
    assert np.abs(expected - found["probabilities"]).max() < 1e-3


def random_strokes(rng):
    """A drawing: curves and dots, somewhere, some of them beyond the edge."""
    strokes = []
    for _ in range(rng.integers(1, 5)):
        middle, spread = rng.uniform(0, 336, 2), rng.choice([3, 40, 150])
        points = middle + np.cumsum(rng.normal(0, spread / 4, (rng.integers(1, 12), 2)), 0)
        strokes.append(points.round(2).tolist())
    return strokes


DRAW = """([strokes, pen]) => {
  // Made up pointers cannot be captured; all else is what a person's do.
  HTMLCanvasElement.prototype.setPointerCapture = () => {};
  canvas.replaceChildren();
  feedax.canvas(canvas, {...feedax.data(), pen});
  const paper = document.querySelector(".paper"), { left, top } = paper.getBoundingClientRect();
  const send = (type, [x, y]) => paper.dispatchEvent(new PointerEvent(
    type, { pointerId: 1, clientX: left + x, clientY: top + y }));
  for (const points of strokes) {
    send("pointerdown", points[0]);
    for (const point of points) send("pointermove", point);
    send("pointerup", points[0]);
  }
}"""


@pytest.mark.parametrize(
    ("dataset", "drawings"), [("mnist", 20), ("fashion_mnist", 6), ("emnist", 6)]
)
def test_any_drawing_becomes_the_image_that_predict_sees(
    browser, network, tmp_path, dataset, drawings
):
    rng = np.random.default_rng(0)
    data = canvas_data((28, 28), dataset, DIGITS, network.program)
    seen = set()
    with opened(browser) as page:
        page.goto(write_page(tmp_path / "page.html", data).as_uri())
        for i in range(drawings):
            page.evaluate(DRAW, [random_strokes(rng), float(rng.choice([3, 8, 20, 26, 45]))])
            found = result(page)
            png = save_png(page, tmp_path / f"{i}.png")
            image = prepare_image(png, (28, 28), dataset)
            assert image.pixels.ravel().tolist() == found["pixels"], i
            expected = network.probabilities(image.pixels)
            assert np.abs(expected - found["probabilities"]).max() < 1e-3
            said = page.locator(".said").inner_text()
            for note in image.notes:
                if note.startswith("perhaps"):
                    count = note.split()[1]
                    assert f"of the {count} that are far apart, the largest." in said
                    seen.add("several")
            seen.add("one" if "far apart" not in said else "several")
    assert seen == {"one", "several"}


def test_a_server_may_prepare_and_predict(browser, tmp_path):
    """What a prepare function returns is shown, of colour images and of many classes too."""
    names = [f"kind {i}" for i in range(12)]
    more = """window.more = {prepare: async (png) => {
        const bytes = new Uint8Array(await png.arrayBuffer());
        if (window.fails) throw new Error("The server has ended.");
        const probabilities = names.map((_, i) => (i === 11 ? 0.34 : 0.06));
        const pixels = new Uint8Array(8 * 8 * 3).fill(200);
        return {pixels, probabilities, note: `${String.fromCharCode(...bytes.slice(1, 4))}.`};
    }}; const names = feedax.data().classNames;"""
    with opened(browser) as page:
        data = canvas_data((8, 8, 3), "cifar10", names)
        page.goto(write_page(tmp_path / "page.html", data, more).as_uri())
        stroke(page, SEVEN)
        page.get_by_text("The network reads “").wait_for()
        said, bars = read(page)
        assert said == (
            "The network reads “kind 11” with a probability of 34.0 %. It is not sure. PNG."
        )
        assert bars[:2] == [("kind 11", "34.0 %"), ("kind 0", "6.0 %")]
        assert len(bars) == 10
        page.evaluate("window.fails = true")
        stroke(page, [[(0.3, 0.5)]])
        page.get_by_text("The server has ended.").wait_for()


def test_a_page_brings_drawings_to_28_by_28_grey_pixels_only():
    with pytest.raises(ImageError) as caught:
        canvas_data((32, 32, 3), "cifar10", DIGITS, {"equations": []})
    assert str(caught.value) == (
        "canvas_data: a page brings a drawing to 28 x 28 grey pixels, and the shape of the "
        "network's examples is (32, 32, 3); let feedax show run it on this machine"
    )


def test_it_fits_on_a_phone_and_is_drawn_on_with_a_finger(browser, network, tmp_path):
    names = [*DIGITS[:9], "an unusually long name"]
    data = canvas_data((28, 28), "mnist", names, network.program)
    with opened(browser, dark=True) as page:
        page.set_viewport_size(PHONE)
        page.goto(write_page(tmp_path / "page.html", data).as_uri())
        assert page.evaluate("() => document.documentElement.scrollWidth") == PHONE["width"]
        touch = page.context.new_cdp_session(page)
        box = page.locator(".paper").bounding_box()
        for i, (x, y) in enumerate(SEVEN[0]):
            point = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
            kind = "touchMove" if i else "touchStart"
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        assert np.argmax(result(page)["probabilities"]) == 7
        assert page.evaluate("() => scrollY") == 0

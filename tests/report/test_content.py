"""What a page says of a run, as plain values."""

import math

import numpy as np
import torch
from torch.utils.data import TensorDataset

import feedax
from feedax.report.content import RunReport, sections
from feedax.report.model_report import model_report
from feedax.web import script_json


def report(history, **more):
    return sections(RunReport(title="a model", history=history, **more))


def test_every_metric_has_a_chart_of_its_own_name():
    history = [{"epoch": 0, "loss": 1.0, "top_5": 0.5}]
    history.append({"epoch": 1, "loss": 0.5, "top_5": 0.75, "test_top_5": 0.25})
    charts = {one["title"]: one["series"] for one in report(history)["curves"]}
    assert list(charts) == ["loss", "top_5"]
    assert {one["label"]: one["values"] for one in charts["top_5"]} == {
        "top_5 while training": [0.5, 0.75],
        "test set top_5": [None, 0.25],
    }


def test_numbers_that_json_lacks_are_gaps():
    x = np.arange(3, dtype=np.float32)
    y = np.float32([1, math.nan, 3])
    found = feedax.predictions(lambda w, x: w / x, np.float32(1), [(x, y)])
    history = [
        {"epoch": 0, "seconds": None, "loss": math.inf},
        {"epoch": 1, "seconds": 1.0, "loss": math.nan},
        {"epoch": 2, "seconds": 1.0, "loss": 0.5},
    ]
    page = report(history, predictions=found)
    (loss,) = page["curves"]
    assert loss["series"][0]["values"] == [None, None, 0.5]
    assert page["headline"]["times"][0]["seconds"] == "2.00 s"
    assert page["numbers"]["predicted"]["x"] == [1.0, 3.0]
    assert script_json([loss, page["numbers"]])


def test_parameters_are_rounded_for_the_page_whatever_the_run_computed_in(rng):
    x = rng.integers(0, 256, (64, 784)).astype(np.float32)
    w = rng.normal(size=(10, 784)).astype(np.float32) / 255
    arrays = map(torch.from_numpy, (x, np.arange(64) % 10))
    test = feedax.NumpyLoader(TensorDataset(*arrays), batch_size=64)
    for precision in (None, "bfloat16"):
        found = model_report(
            {"predict": lambda w, x: w @ x, "params": w}, [], test, title="a layer",
            class_names=None, image_shape=(28, 28), precision=precision,
        )  # fmt: skip
        assert [one["dtype"] for one in found.canvas["program"]["constants"]] == ["int16"]

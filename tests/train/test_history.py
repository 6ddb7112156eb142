"""The history of a run: a list of dicts that prints as a table."""

import copy
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np

import feedax

ROWS = [
    {"epoch": i, "seconds": 0.5, "wait_seconds": 0.1, "loss": 1 / (i + 1), "test_accuracy": None}
    for i in range(3)
]


def test_it_is_a_list_of_dicts():
    history = feedax.History(ROWS)
    assert history == ROWS
    assert history == ROWS
    assert repr(history) == repr(ROWS)
    assert json.loads(json.dumps(history)) == ROWS
    for again in (pickle.loads(pickle.dumps(history)), copy.copy(history), history[:]):
        assert (type(again), again) == (feedax.History, ROWS)
    assert history[0] is ROWS[0]
    mean = jax.tree.map(
        lambda a, b: (a + b) / 2, feedax.History(ROWS[:1]), feedax.History(ROWS[1:2])
    )
    assert mean[0]["epoch"] == 0.5


def test_it_prints_as_a_table():
    assert str(feedax.History(ROWS)) == (
        "epoch    loss  test_accuracy  seconds\n"
        "    0  1.0000              -     0.50\n"
        "    1  0.5000              -     0.50\n"
        "    2  0.3333              -     0.50"
    )
    assert str(feedax.History()) == feedax.History()._repr_html_() == "no epoch has ended"
    many = str(feedax.History([{"epoch": i, "loss": 1e-9 * i} for i in range(100)])).splitlines()
    assert [line.split()[0] for line in many] == [
        "epoch", *map(str, range(10)), "...", *map(str, range(90, 100))
    ]  # fmt: skip
    assert many[-1].split() == ["99", "9.9e-08"]


def test_a_notebook_shows_a_curve_of_each_column():
    rows = [{"epoch": 0, "<b>": 0.0}, {"epoch": 1, "<b>": float("nan")}, {"epoch": 2, "<b>": 1.0}]
    html = feedax.History(rows)._repr_html_()
    assert "<th>&lt;b&gt;</th>" in html
    assert html.count('<polyline points="2.0,26.0 74.0,2.0"') == 1


def test_fit_sweep_and_resumed_runs_return_one(tmp_path):
    x = np.eye(4, dtype=np.float32)
    batches = [(x, np.arange(4))]

    def run(epochs):
        checkpoints = feedax.Checkpoints(tmp_path / "fit")
        zeros = jnp.zeros((4, 4))
        return feedax.fit(
            lambda w, x: w @ x, zeros, batches, epochs=epochs, checkpoints=checkpoints
        )

    for epochs in (1, 2, 2):
        assert (type(run(epochs)[1]), len(run(epochs)[1])) == (feedax.History, epochs)
    for _ in range(2):  # the second call reads what the first has trained
        found = feedax.sweep(
            lambda w, x: w @ x, lambda key: jnp.zeros((4, 4)), batches,
            checkpoints=feedax.Checkpoints(tmp_path / "sweep"),
        )  # fmt: skip
        assert type(found.networks[0].history) is feedax.History

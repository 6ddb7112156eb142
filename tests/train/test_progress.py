"""The bar of `fit` and `sweep`: on a real terminal, in a real notebook, and where nobody looks."""

import io
import os
import re
import subprocess
import sys

import nbclient
import nbformat
import pytest
from terminal import Terminal

from feedax.train import progress
from feedax.train.events import NetworksStarted, Stepped

SCRIPT = """
import sys
import jax.numpy as jnp, numpy as np
import feedax

x = np.eye(4, dtype=np.float32)
def predict(w, x): return w @ x
def train(batches=300, **more):
    return feedax.fit(predict, jnp.zeros((4, 4)), [(x, np.arange(4))] * batches, **more)
"""
ROW = r"epoch {} {{2}}loss \d.\d+ {{2}}accuracy \d.\d+ {{2}}seconds \d.\d+"


def script(code):
    return [sys.executable, "-W", "error", "-c", SCRIPT + code]


def test_a_terminal_has_a_bar_and_rows_and_a_pipe_has_the_output_alone(tmp_path):
    with open(tmp_path / "out", "w") as out:
        screen = Terminal(script("print(train(epochs=3)[1])"), tmp_path, stdout=out)
    assert screen.returncode == 0, screen.text
    table = (tmp_path / "out").read_text().splitlines()
    assert [line.split()[0] for line in table] == ["epoch", "0", "1", "2"]
    assert re.search(r"^epoch 0 ━+ loss \d\.\d+  [\d,]+ examples/s", screen.text, re.MULTILINE)
    for epoch in (0, 2):  # of such short epochs, some are left out, but not the last
        assert re.search(rf"^{ROW.format(epoch)}$", screen.text, re.MULTILINE)
    assert screen.is_in_good_order


def test_a_sweep_counts_networks(tmp_path):
    code = """
feedax.sweep(predict, lambda key: jnp.zeros((4, 4)), [(x, np.arange(4))], seeds=2,
             learning_rate=[0.1, 0.2])
"""
    screen = Terminal(script(code), tmp_path)
    assert screen.returncode == 0, screen.text
    assert re.search(r"^0/4 networks ━+", screen.text, re.MULTILINE)
    names = re.findall(r"^network (\S+)  epoch 0  loss", screen.text, re.MULTILINE)
    assert names == [f"learning_rate={rate},seed={seed}" for rate in (0.1, 0.2) for seed in (0, 1)]


def test_only_networks_that_have_ended_are_counted(monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 0)
    monkeypatch.setenv("TERM", "xterm")
    screen = io.StringIO()
    screen.isatty = lambda: True
    with progress.ProgressBar(stream=screen) as bar:
        bar(NetworksStarted(["a", "b", "c", "d"], ended=4, count=8, epochs=2, steps=10))
        bar(Stepped(1, 0, loss=0.5, examples_per_second=100.0, params=None, total_steps=10))
    assert set(re.findall(r"\d/8 networks", screen.getvalue())) == {"4/8 networks"}


@pytest.mark.parametrize(
    "code",
    ["print(train(epochs=2)[1])", "print(train(epochs=2, progress=False)[1])"],
    ids=["pipe", "off"],
)
def test_nothing_is_shown_on_a_pipe_nor_where_it_is_not_wanted(code, tmp_path):
    if "False" in code:
        screen = Terminal(script(code), tmp_path)
        assert "━" not in screen.text
        assert "loss" in screen.text
    else:
        done = subprocess.run(script(code), capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_what_others_print_an_exception_and_ctrl_c_leave_the_terminal_in_order(tmp_path):
    code = """
def nested(event):
    if isinstance(event, feedax.EpochEnded):
        print("said", event.epoch)
        train(epochs=1)                       # shows no second bar
        raise {}
try:
    train(epochs=2, callbacks=[nested])
finally:
    print("after", file=sys.stderr)
"""
    for error, exit_code in (("feedax.StopTraining", 0), ("OSError('mine')", 1)):
        screen = Terminal(script(code.format(error)), tmp_path)
        assert screen.returncode == exit_code
        assert re.search(r"^said 0$", screen.text, re.MULTILINE)
        assert re.search(r"^after$", screen.text, re.MULTILINE)
        assert len(re.findall(rf"^{ROW.format(0)}$", screen.text, re.MULTILINE)) == 1
        assert screen.is_in_good_order
    screen = Terminal(script("train(epochs=10**6)"), tmp_path, interrupt=b"examples/s")
    assert screen.returncode != 0
    assert screen.text.rstrip().endswith("KeyboardInterrupt")
    assert screen.is_in_good_order


def test_a_screen_that_is_closed_ends_no_run():
    for stream in ("sys.stderr.close()", "sys.stderr = None", "import os; os.close(2)"):
        code = f"{stream}\nprint(len(train(epochs=2, progress=True)[1]))"
        done = subprocess.run(script(code), capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "2\n")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as nobody_reads:
        code = "print(len(train(epochs=2, progress=True)[1]), flush=True)"
        done = subprocess.run(script(code), stdout=subprocess.PIPE, stderr=nobody_reads, text=True)
    assert done.stdout == "2\n"


def test_a_notebook_has_a_table_that_grows_and_draws_the_history(tmp_path):
    cells = [SCRIPT, "w, history = train(epochs=3)", "history", "feedax.plot(history)"]
    notebook = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, cells)])
    nbclient.NotebookClient(notebook, timeout=None).execute()
    shown = [cell.outputs for cell in notebook.cells]
    ((bar,), (table,), (figure,)) = shown[1:]
    assert bar.output_type == "display_data"
    # When it is done the bar is gone, and the rows stay.
    assert "<progress" not in bar.data["text/html"]
    assert bar.data["text/html"].count("<tr>") >= 3
    assert table.data["text/html"].count("<tr>") == 5
    assert table.data["text/html"].count("<svg") == 3
    assert table.data["text/plain"].splitlines()[0].split() == [
        *("epoch", "loss", "accuracy", "seconds")
    ]
    assert figure.data["image/png"].startswith("iVBOR")

"""The tutorial: its two files are in step, it runs, and its numbers are the ones it tells."""

import json
import os
import re
from pathlib import Path
from typing import Any

import jupytext
import nbclient
import nbformat
import pytest

import feedax

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "tutorial.md").read_text(encoding="utf-8")
TOLERANCE = 0.0015
"""Some machines add in another order; a few of 10000 images then fall on the other side."""

# Deep inside the Jupyter libraries, and nothing that a caller could do otherwise.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_core.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq.*"),
]

# The names that the text makes claims about, printed as the last thing that the kernel does.
REPORT = """
import json
print("REPORT" + json.dumps({
    "history": history,
    "by_hand_history": by_hand_history,
    "step_difference": float(step_difference),
    "loss": float(loss(params_old_bits, images, targets)),
    "cross_entropy": float(mean_cross_entropy(params_old_bits, images, labels)),
    "batch_sizes": batch_sizes,
    "updates_compiled": updates_compiled,
    "loops_compiled": loops_compiled,
    "seconds_asked": seconds_asked,
    "seconds_done": seconds_done,
    "in_random_order": in_random_order,
    "when_sorted": when_sorted,
    "when_sorted_and_shuffled": when_sorted_and_shuffled,
    "scaled_tiny_step": scaled_tiny_step,
    "scaled_suitable_step": scaled_suitable_step,
    "scaled_adam": scaled_adam,
}))
"""


def read(name: str) -> Any:
    return jupytext.read(DOCS / name)


def printed(notebook: Any) -> str:
    outputs = (out for cell in notebook.cells for out in cell.get("outputs", []))
    return "".join(out.text for out in outputs if out.output_type == "stream")


def test_the_notebook_has_the_cells_of_the_text() -> None:
    text, notebook = read("tutorial.md"), read("tutorial.ipynb")
    assert [(c.cell_type, c.source) for c in text.cells] == [
        (c.cell_type, c.source) for c in notebook.cells
    ]
    for pair in (text, notebook):
        assert pair.metadata["jupytext"]["formats"] == "ipynb,md"
        assert pair.metadata["kernelspec"]["name"] == "python3"


def test_the_notebook_is_stored_with_clean_outputs() -> None:
    notebook = read("tutorial.ipynb")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [out for cell in code for out in cell.outputs]
    assert all(out.get("name", "stdout") == "stdout" for out in outputs), "no warnings"
    assert all(out.output_type in ("stream", "display_data") for out in outputs), "no errors"
    assert sum("image/png" in out.get("data", {}) for out in outputs) == 1
    raw = (DOCS / "tutorial.ipynb").read_text(encoding="utf-8")
    assert not re.search(r"/(tmp|home|root|Users|work)/", raw), "no path of one machine"


def test_the_table_in_the_text_is_that_of_the_stored_run() -> None:
    stored = re.findall(
        r"epoch (\d) in .*: training (0\.\d+), test (0\.\d+)", printed(read("tutorial.ipynb"))
    )
    rows = re.findall(r"^\| (\d) \| \S+ \| (\S+) \| \S+ \| (\S+) \|$", TEXT, flags=re.MULTILINE)
    assert rows == stored[-8:]


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The text, run from the top in a fresh kernel and a folder of its own."""
    folder = tmp_path_factory.mktemp("tutorial")
    notebook = read("tutorial.md")
    notebook.cells.append(nbformat.v4.new_code_cell(REPORT))
    source = Path(feedax.__file__).parents[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")]),
        "IPYTHONDIR": str(folder / "ipython"),
    }
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=environment)
    return notebook


@pytest.fixture(scope="module")
def report(executed: Any) -> Any:
    return json.loads(printed(executed).split("REPORT")[1])


@pytest.mark.slow
def test_it_runs_without_a_traceback(executed: Any) -> None:
    outputs = [out for cell in executed.cells for out in cell.get("outputs", [])]
    assert not [out for out in outputs if out.output_type == "error"]
    text = printed(executed)
    assert "Traceback" not in text
    assert re.findall(r"^(\w+Error):", text, flags=re.MULTILINE) == ["TypeError", "NotANumberError"]
    assert "TypeError: predict: image must be one example of shape (784,)" in text
    assert "batched_predict" in text


@pytest.mark.slow
def test_the_table_is_reproduced(report: Any) -> None:
    history = report["history"]
    assert len(history) == 8
    assert history[0]["train_accuracy"] == pytest.approx(0.91575, abs=TOLERANCE)
    assert history[0]["test_accuracy"] == pytest.approx(0.92, abs=TOLERANCE)
    assert history[7]["train_accuracy"] == pytest.approx(0.9738, abs=TOLERANCE)
    assert history[7]["test_accuracy"] == pytest.approx(0.967, abs=TOLERANCE)


@pytest.mark.slow
def test_fit_and_the_loop_by_hand_agree(report: Any) -> None:
    for row, (train, test) in zip(report["history"][:2], report["by_hand_history"], strict=True):
        assert row["train_accuracy"] == pytest.approx(train, abs=TOLERANCE)
        assert row["test_accuracy"] == pytest.approx(test, abs=TOLERANCE)


@pytest.mark.slow
def test_the_loss_is_a_tenth_and_so_is_the_step(report: Any) -> None:
    assert 10 * report["loss"] == pytest.approx(report["cross_entropy"], rel=1e-5)
    assert report["step_difference"] < 1e-7


@pytest.mark.slow
def test_the_short_batch_costs_the_hand_loop_a_compilation_and_fit_none(report: Any) -> None:
    assert report["batch_sizes"] == [128] * 468 + [96]
    assert report["updates_compiled"] == 2
    assert report["loops_compiled"] == 1
    assert [row["compile_seconds"] > 0 for row in report["history"]] == [True] + [False] * 7


@pytest.mark.slow
def test_the_clock_that_waits_shows_more(report: Any) -> None:
    assert report["seconds_done"] > 2 * report["seconds_asked"]


@pytest.mark.slow
def test_the_order_matters_when_the_file_is_sorted(report: Any) -> None:
    assert report["in_random_order"] == pytest.approx(0.923, abs=0.01)
    assert report["when_sorted"] == pytest.approx(0.1009, abs=TOLERANCE)
    assert report["when_sorted_and_shuffled"] == pytest.approx(0.921, abs=0.01)


@pytest.mark.slow
def test_pixels_and_step_size_are_a_pair(report: Any) -> None:
    assert report["scaled_tiny_step"] < 0.3
    assert report["scaled_suitable_step"] == pytest.approx(0.866, abs=0.02)
    assert report["scaled_adam"] == pytest.approx(0.952, abs=0.01)

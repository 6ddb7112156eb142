"""The code in README and docs runs, and what it points to is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DESIGN = ROOT / "docs" / "design.md"
LOADER = ROOT / "docs" / "loader.md"
MODELS = ROOT / "docs" / "models.md"
TRAINING = ROOT / "docs" / "training.md"
AUGMENTATION = ROOT / "docs" / "augmentation.md"
SWEEPS = ROOT / "docs" / "sweeps.md"
PRESETS = ROOT / "docs" / "presets.md"
INDEX = ROOT / "docs" / "index.md"
GALLERY = ROOT / "docs" / "gallery.md"
LOGGERS = ROOT / "docs" / "loggers.md"
SHOWING = ROOT / "docs" / "showing.md"
PAGES = [
    README, DESIGN, LOADER, MODELS, TRAINING, AUGMENTATION, SWEEPS, PRESETS, INDEX, GALLERY,
    LOGGERS, SHOWING,
]  # fmt: skip


def code(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def run(page: Path, folder: Path) -> str:
    """Run a page's code as a script; what it prints."""
    script = folder / "page.py"
    script.write_text("\n".join(code(page)))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readmes_fifteen_lines_learn(tmp_path):
    accuracy, plan = run(README, tmp_path).split(" ", 1)
    assert float(accuracy) > 0.95
    assert plan.startswith("streamed: Disc may run any Python for an example")


@pytest.mark.slow
def test_the_sites_first_example_learns(tmp_path):
    assert float(run(INDEX, tmp_path).removeprefix("test accuracy ")) > 0.95


@pytest.mark.slow
def test_the_design_pages_example_runs(tmp_path):
    assert run(DESIGN, tmp_path).startswith("resident: all 1,000 examples of TensorDataset")


@pytest.mark.slow
def test_the_loader_pages_example_runs(tmp_path):
    plan, last = run(LOADER, tmp_path).splitlines()
    assert plan.startswith("resident: all 50 examples of Mine")
    assert last == "10 examples in the last batch"


@pytest.mark.slow
def test_the_models_page_trains_a_model_of_every_library_in_under_fifteen_lines(tmp_path):
    scores = dict(line.split() for line in run(MODELS, tmp_path).splitlines())
    assert set(scores) == {"jax", "equinox", "equinox_state", "haiku", "nnx", "linen"}
    assert min(map(float, scores.values())) > 0.87
    for block in code(MODELS):
        assert sum(bool(line.strip()) for line in block.splitlines()) < 15


@pytest.mark.slow
def test_the_training_pages_run_is_resumed_to_the_same_bits(tmp_path):
    said = dict(line.split(" ", 1) for line in run(TRAINING, tmp_path).splitlines())
    assert float(said["resumed"]) > 0.95
    assert float(said["by"].removeprefix("name ")) > 0.85
    best, state = ([f"{of}.{i}" for i in range(3)] for of in ("best.0", "state.params"))
    assert said["arrays"].split() == [*best, *state]
    assert said["about"] == "225 5 validation_accuracy"
    fast, slow, slowest = map(float, said["side"].removeprefix("by side ").split())
    assert fast > slow > slowest


@pytest.mark.slow
def test_the_augmentation_pages_network_learns(tmp_path):
    word, accuracy = run(AUGMENTATION, tmp_path).split()
    assert word == "augmented"
    assert float(accuracy) > 0.85


@pytest.mark.slow
def test_the_sweeps_pages_networks_are_those_of_fit(tmp_path):
    *settings, equal, last = run(SWEEPS, tmp_path).splitlines()
    assert len(settings) == 4
    assert equal == "equal True"
    assert last == "[{'weight_decay': 0.0}, {'weight_decay': 0.01}, {'weight_decay': 0.1}]"


@pytest.mark.slow
def test_the_presets_pages_recipe_trains(tmp_path):
    assert float(run(PRESETS, tmp_path).split()[-1]) > 0.85


@pytest.mark.slow
def test_the_loggers_pages_run_is_logged(tmp_path):
    assert run(LOGGERS, tmp_path) == "logged 3\n"
    assert {path.name[:6] for path in (tmp_path / "runs" / "mine").iterdir()} == {
        "events",
        "params",
        "saved",
    }


def test_the_design_page_has_a_line_for_each_module():
    source = ROOT / "src" / "feedax"
    named = re.findall(r"^\| `([\w./]+)` \|", DESIGN.read_text(), re.MULTILINE)
    files = [
        path for path in (source / "web").iterdir() if path.suffix in (".jinja", ".js", ".css")
    ]
    modules = {str(path.relative_to(source)) for path in (*source.rglob("*.py"), *files)}
    doors = {name for name in modules if name.endswith("__.py")}  # those that do more have a line
    assert len(named) == len(set(named))
    assert modules - doors <= set(named) <= modules


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize(
    ("page", "commands"),
    [
        (README, {"train", "evaluate", "predict", "show", "plan", "sweep"}),
        (TRAINING, {"train"}),
        (SWEEPS, {"sweep"}),
        (GALLERY, {"train", "report", "sweep"}),
        (SHOWING, {"report", "show"}),
        (LOGGERS, {"train", "sweep"}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_commands_that_are_shown_are_real(page, commands):
    """Every flag of every `feedax` command that a page shows is one that the help knows."""
    shell = "".join(re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
    shown = re.findall(r"^feedax (\w+)(.*)$", shell, re.MULTILINE)
    assert {command for command, _ in shown} == commands
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "feedax", command, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"COLUMNS": "200"},
        )
        flags = {flag for name, rest in shown if name == command for flag in rest.split()}
        for flag in sorted(flag for flag in flags if flag.startswith("--")):
            assert re.search(rf"{flag}\b", done.stdout), flag


def test_make_targets_that_the_readme_names_exist():
    rules = (ROOT / "Makefile").read_text()
    named = re.findall(r"^(?:\| `)?make ([\w-]+)", README.read_text(), re.MULTILINE)
    assert "test-all" in named
    for target in named:
        assert f"\n{target}:" in rules

"""The page about other libraries: both sides of each job run, and come to the same."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "migrating.md").read_text("utf-8")
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SECTIONS = {
    section.partition("\n")[0]: CODE.findall(section) for section in PAGE.split("\n## ")[1:]
}
(BEGINNING,) = CODE.findall(PAGE.partition("\n## ")[0])


def run(code: str, result: str, folder: Path) -> object:
    """What an expression is after the page's first lines and some code."""
    folder.mkdir()
    script = folder / "side.py"
    script.write_text(f"{BEGINNING}\n{code}\nimport json\nprint('RESULT' + json.dumps({result}))\n")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("RESULT")[2])


def both(section: str, result: str, folder: Path, needs: str = "") -> tuple[object, object]:
    """What the other library's side of a section comes to, and ours."""
    if needs and find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed; make bench installs it")
    theirs, ours = SECTIONS[section]
    return run(theirs, result, folder / "theirs"), run(ours, result, folder / "ours")


def test_every_section_has_two_sides_that_are_python():
    assert list(SECTIONS) == [
        "PyTorch's DataLoader",
        "A training loop in PyTorch",
        "Grain",
        "jax-dataloader",
        "Lightning",
        "Keras",
    ]
    for name, sides in SECTIONS.items():
        assert len(sides) == 2
        for side in sides:
            compile(side, name, "exec")


@pytest.mark.slow
def test_our_loader_gives_the_batches_of_torchs(tmp_path):
    theirs, ours = both("PyTorch's DataLoader", "[float(mean) for mean in means]", tmp_path)
    assert theirs == ours
    assert len(set(ours)) > 400  # of 469


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "needs"),
    [("A training loop in PyTorch", ""), ("Lightning", ""), ("Keras", "keras")],
)
def test_both_networks_learn(tmp_path, section, needs):
    for accuracy in both(section, "float(accuracy)", tmp_path, needs):
        assert accuracy == pytest.approx(0.965, abs=0.015)


@pytest.mark.slow
def test_both_continue_grains_epoch_where_it_was_stopped(tmp_path):
    counts = "[len(seen), len(rest), np.bincount(np.concatenate([*seen, *rest])).tolist()]"
    theirs, ours = both("Grain", counts, tmp_path, "grain")
    assert theirs == ours
    assert ours[:2] == [100, 369]
    assert sum(ours[2]) == 60_000


@pytest.mark.slow
def test_both_have_each_label_of_jax_dataloaders_epoch_once(tmp_path):
    counts = "np.bincount(labels).tolist()"
    theirs, ours = both("jax-dataloader", counts, tmp_path, "jax_dataloader")
    assert theirs == ours
    assert sum(ours) == 60_000

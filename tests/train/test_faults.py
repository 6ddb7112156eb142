"""Damaged checkpoints and full disks: what is damaged is named, and the run ends as it would have.

A run of 8 steps has checkpoints after 3, 6 and 8. What happens to one of them must not show in the
parameters and the rows that the run ends with.
"""

import json
import os
import re
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import run_command, slow, timeless

from feedax.cli import main
from feedax.report.run_folder import RunFolder
from feedax.train import Checkpoints

FLAGS = (
    "--dataset npz:{} --hidden 32 --batch-size 16 --optimizer adam --shuffle --epochs 2 "
    "--checkpoint-every-steps 3"
)
NAMES = [f"step-{step:09}.safetensors" for step in (3, 6, 8)]
NEWEST = f"run/checkpoints/{NAMES[-1]}"
LEFT_OUT = "; use an earlier one, as fit does now"
CHANGED = "its content is not what was written (SHA-256)"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that differ in their seed only, and one of another network, in one folder."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (60, 4, 4), dtype=np.uint8)
    np.savez(folder / "tiny.npz", x_train=images, y_train=np.arange(60) % 3)
    flags = FLAGS.format(folder / "tiny.npz")
    for name, more in (("run", ""), ("other", "--seed 1"), ("network", "--hidden 31")):
        assert main(["train", *flags.split(), *more.split(), "--out", str(folder / name)]) == 0
        assert sorted(os.listdir(folder / name / "checkpoints")) == NAMES
    return folder


@pytest.fixture
def resume(runs, tmp_path, monkeypatch, capfd):
    """Resumes a copy of the run."""
    shutil.copytree(runs / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()

    def run():
        dataset = f"npz:{runs / 'tiny.npz'}"
        return run_command(capfd, ["train", "--resume", "run", "--dataset", dataset])

    return run


def rows(run):
    return timeless(RunFolder.open(run).rows())


def assert_ends_as_the_whole_run(runs, done):
    assert done.returncode == 0, done.stderr
    names = ["params.safetensors"]
    assert [(Path("run") / name).read_bytes() for name in names] == [
        (runs / "run" / name).read_bytes() for name in names
    ]
    assert rows("run") == rows(runs / "run")
    assert sorted(os.listdir("run/checkpoints")) == NAMES


def assert_said(done, *sentences):
    """What is left out is said, a line each, before where the run goes on."""
    said = [line.removeprefix("feedax train: ") for line in done.stderr.splitlines()]
    assert said[0].startswith("the run's folder is run; it trains on the CPU, ")
    assert tuple(said[1 : 1 + len(sentences)]) == sentences


def unusable(path, what):
    return f"read_checkpoint: {path} must be a whole checkpoint, and {what}{LEFT_OUT}"


def goes_on(step):
    return f"resumed after step {step}, from run/checkpoints/step-{step:09}.safetensors"


def flip(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def places(content):
    """A byte of every region of a checkpoint, by name."""
    data = 8 + int.from_bytes(content[:8], "little")
    return {
        "header length": 0,
        "header length, high": 7,
        "first brace": 8,
        "format": content.index(b"feedax checkpoint 1") + 18,
        "size": content.index(b'"size":"') + 23,
        "digest": content.index(b'"sha256":"') + 12,
        "dtypes": content.index(b'"dtypes"') + 3,
        "about": content.index(b'"about"') + 30,
        "entry": content.index(b'"data_offsets"') + 17,
        "padding, or the last brace": data - 1,
        "first number": data,
        "number": (data + len(content)) // 2,
        "last number": len(content) - 1,
    }


@pytest.mark.parametrize(
    "place", [slow("header length"), slow("size"), "digest", slow("about"), slow("last number")]
)
def test_one_flipped_bit_is_named_and_the_run_goes_on_from_before(runs, resume, place):
    path = Path(NEWEST)
    content = path.read_bytes()
    path.write_bytes(flip(content, places(content)[place]))
    done = resume()
    what = {
        "size": rf"it (has|ends after) {len(content)} bytes instead of \d+",
        "digest": rf"(it is not one|{re.escape(CHANGED)})",  # none, where it is no digit any more
    }
    named = done.stderr.splitlines()[1].removeprefix("feedax train: ")
    pattern = unusable(NEWEST, "WHAT").replace("WHAT", what.get(place, re.escape(CHANGED)))
    assert re.fullmatch(pattern, named), named
    assert_said(done, named, goes_on(6))
    assert_ends_as_the_whole_run(runs, done)


def test_one_flipped_bit_anywhere_is_found(runs, tmp_path):
    run = RunFolder.open(runs / "run").setting("run")
    for name in NAMES[1:]:
        shutil.copy(runs / "run" / "checkpoints" / name, tmp_path)
    checkpoints = Checkpoints(tmp_path, run=run)
    newest = tmp_path / NAMES[-1]
    content = newest.read_bytes()
    assert checkpoints.newest().path == newest
    for place in sorted({*places(content).values(), *range(0, len(content), 29)}):
        newest.write_bytes(flip(content, place))
        assert checkpoints.newest().path == tmp_path / NAMES[1], place


@pytest.mark.parametrize("left", [slow(0), slow(7), slow(100), 0.5, slow(-1)])
def test_a_checkpoint_that_ends_too_early_is_found(runs, resume, left):
    size = os.path.getsize(NEWEST)
    left = int(size * left) if isinstance(left, float) else left % size
    os.truncate(NEWEST, left)
    done = resume()
    instead = f" instead of {size}" if left > 200 else ""
    assert_said(done, unusable(NEWEST, f"it ends after {left} bytes{instead}"), goes_on(6))
    assert_ends_as_the_whole_run(runs, done)


def test_bytes_that_follow_a_checkpoint_are_found(runs, resume):
    size = os.path.getsize(NEWEST)
    with open(NEWEST, "ab") as file:
        file.write(b"\0")
    done = resume()
    assert_said(done, unusable(NEWEST, f"it has {size + 1} bytes instead of {size}"), goes_on(6))
    assert_ends_as_the_whole_run(runs, done)


def test_without_the_newest_checkpoint_the_one_before_is_used(runs, resume):
    os.unlink(NEWEST)
    done = resume()
    assert_said(done, goes_on(6))
    assert_ends_as_the_whole_run(runs, done)


@pytest.mark.parametrize("other", ["other", slow("network")])
def test_the_checkpoint_of_another_run_is_not_used(runs, resume, other):
    shutil.copy(runs / other / "checkpoints" / NAMES[-1], NEWEST)
    done = resume()
    assert_said(
        done,
        f"fit: {NEWEST} must be a checkpoint of this run, and it is of another one{LEFT_OUT}",
        goes_on(6),
    )
    assert_ends_as_the_whole_run(runs, done)


def test_parameters_are_no_checkpoint(runs, resume):
    shutil.copy("run/params.safetensors", NEWEST)
    done = resume()
    assert_said(done, unusable(NEWEST, "it is not one"), goes_on(6))
    assert_ends_as_the_whole_run(runs, done)


def test_a_folder_in_a_checkpoints_place_is_named(runs, resume):
    """It is left out; what cannot be is that a checkpoint takes its place."""
    os.unlink(NEWEST)
    os.mkdir(NEWEST)
    done = resume()
    assert_said(
        done,
        f"fit: {NEWEST} cannot be read (Is a directory); the one before it is tried",
        goes_on(6),
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1,
        f"feedax train: fit: {NEWEST} must be writable, and the system says 'Is a directory'; "
        "choose another one with --out",
    )
    os.rmdir(NEWEST)
    assert_ends_as_the_whole_run(runs, resume())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_checkpoint_that_may_not_be_read_is_left_out(runs, resume):
    os.chmod(NEWEST, 0)
    done = resume()
    assert_said(
        done,
        f"fit: {NEWEST} cannot be read (Permission denied); the one before it is tried",
        goes_on(6),
    )
    assert_ends_as_the_whole_run(runs, done)


def test_two_damaged_checkpoints_are_both_named(runs, resume):
    os.truncate(NEWEST, 0)
    middle = Path("run/checkpoints") / NAMES[1]
    middle.write_bytes(flip(middle.read_bytes(), -1 % middle.stat().st_size))
    done = resume()
    assert_said(
        done, unusable(NEWEST, "it ends after 0 bytes"), unusable(middle, CHANGED), goes_on(3)
    )
    assert_ends_as_the_whole_run(runs, done)


def test_without_a_whole_checkpoint_the_run_starts_again(runs, resume):
    for name in NAMES:
        os.truncate(f"run/checkpoints/{name}", 0)
    done = resume()
    assert_said(
        done,
        *(unusable(f"run/checkpoints/{n}", "it ends after 0 bytes") for n in reversed(NAMES)),
        "there is no checkpoint to resume from, so it starts at step 0",
    )
    assert_ends_as_the_whole_run(runs, done)


def test_a_checkpoint_that_names_this_run_but_another_network_is_one_line(runs, resume):
    """The configuration was changed by hand: in one place, then in both."""
    config = json.loads(Path("run/config.json").read_bytes()) | {"layers": [16, 31, 3]}
    Path("run/config.json").write_text(json.dumps(config))
    done = resume()
    assert (done.returncode, done.stderr) == (
        1,
        "feedax train: run folder: 'layers' of run/config.json must be those of its flags, and it "
        "is [16, 31, 3]; restore the file from a copy or train again\n",
    )
    arguments = config["arguments"]
    arguments[arguments.index("--hidden") + 1] = "31"
    Path("run/config.json").write_text(json.dumps(config))
    done = resume()
    assert (done.returncode, done.stderr) == (
        1,
        f"feedax train: feedax: {NEWEST} must hold a network with the layers [16, 31, 3], and its "
        "params.0.0 is (32, 16) in place of (31, 16); restore the folder as it was, or train "
        "again\n",
    )
    assert sorted(os.listdir("run/checkpoints")) == NAMES


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint_whole(runs, resume):
    """A bound on the size of a file stands for the disk: parameters fit, a checkpoint does not."""
    first, *later = (f"run/checkpoints/{name}" for name in NAMES)
    before = Path(first).read_bytes()
    size = (os.path.getsize("run/params.safetensors") + len(before)) // 2
    for path in later:
        os.unlink(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        done = resume()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert len(said) == 4, done.stderr
    assert said[1] == f"feedax train: {goes_on(3)}"
    assert said[3] == (
        f"feedax train: fit: {later[0]} must be writable, and the system says 'File too large'; "
        "free some space or choose another one with --out"
    )
    # The next is not begun where one could not be written, and nothing half-written is left.
    assert os.listdir("run/checkpoints") == [NAMES[0]]
    assert Path(first).read_bytes() == before
    assert [path for path in Path("run").rglob("*") if path.name.endswith(".part")] == []
    assert_ends_as_the_whole_run(runs, resume())

"""The run folder, the parameters file and the curves."""

import io
import json
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from feedax.errors import RunFolderError
from feedax.report.figures import curves_png
from feedax.report.run_folder import RunFolder
from feedax.storage.params_file import load_params, save_params

PARAMS = [(np.float32([[1, 2, 3], [4, 5, 6]]), np.float32([7, 8])), {"scale": np.float16(0.5)}]
ROWS = [
    {"epoch": 0, "loss": 2.0, "train_loss": 1.5, "train_accuracy": 0.5, "test_loss": 1.75},
    {"epoch": 1, "loss": 1.0, "train_loss": 0.5, "train_accuracy": 0.75, "test_loss": 0.25},
]


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(".part"))


def test_parameters_come_back_as_they_were(tmp_path):
    path = tmp_path / "p.safetensors"
    save_params(path, PARAMS)
    [(w, b), rest] = load_params(path, like=PARAMS)
    np.testing.assert_array_equal(w, PARAMS[0][0])
    np.testing.assert_array_equal(b, PARAMS[0][1])
    assert (w.dtype, rest["scale"].dtype, rest["scale"].shape) == (jnp.float32, jnp.float16, ())
    assert leftovers(tmp_path) == []


def test_arrays_are_named_by_their_path(tmp_path):
    from safetensors.numpy import load_file

    save_params(tmp_path / "p", PARAMS)
    assert sorted(load_file(tmp_path / "p")) == ["0.0", "0.1", "1.scale"]


def test_a_transposed_view_is_saved_as_it_reads(tmp_path):
    array = np.arange(6.0, dtype=np.float32).reshape(2, 3).T
    save_params(tmp_path / "p", array)
    np.testing.assert_array_equal(load_params(tmp_path / "p", like=array), array)


def test_leaves_are_saved_in_the_dtype_that_jax_gives_them(tmp_path):
    params = {"b": jnp.ones(2, jnp.bfloat16), "n": 3, "x": 0.5, "none": np.zeros((0, 2))}
    save_params(tmp_path / "p", params)
    loaded = load_params(tmp_path / "p", like=params)
    assert {name: leaf.dtype.name for name, leaf in loaded.items()} == {
        "b": "bfloat16",
        "n": "int32",
        "x": "float32",
        "none": "float32",
    }
    assert (int(loaded["n"]), float(loaded["x"]), loaded["none"].shape) == (3, 0.5, (0, 2))


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (
            [PARAMS[0]],
            "load_params: {path} must hold the arrays 0.0, 0.1, and it holds 0.0, 0.1, 1.scale; "
            "load it into the model that it was saved from",
        ),
        (
            [(np.zeros((9, 3), np.float32), PARAMS[0][1]), PARAMS[1]],
            "load_params: 0.0 of {path} must be float32 (9, 3), and it is float32 (2, 3); load it "
            "into the model that it was saved from",
        ),
        (
            [(PARAMS[0][0].astype(np.int32), PARAMS[0][1]), PARAMS[1]],
            "load_params: 0.0 of {path} must be int32 (2, 3), and it is float32 (2, 3); load it "
            "into the model that it was saved from",
        ),
    ],
)
def test_other_parameters_are_refused(tmp_path, like, message):
    path = tmp_path / "p.safetensors"
    save_params(path, PARAMS)
    with pytest.raises(RunFolderError) as error:
        load_params(path, like=like)
    assert str(error.value) == message.format(path=path)


def test_a_missing_or_corrupt_file_is_refused(tmp_path):
    with pytest.raises(RunFolderError) as error:
        load_params(tmp_path / "none", like=PARAMS)
    assert str(error.value) == (
        f"load_params: {tmp_path / 'none'} must be a parameters file, and it is not there; a run "
        "writes its parameters when it ends"
    )
    save_params(tmp_path / "p", PARAMS)
    (tmp_path / "p").write_bytes((tmp_path / "p").read_bytes()[:-3])
    with pytest.raises(
        RunFolderError, match=r"^load_params: .* must be a safetensors file, and it"
    ):
        load_params(tmp_path / "p", like=PARAMS)


@pytest.mark.parametrize("leaf", ["text", object(), np.array(["a"]), jax.random.key(0)])
def test_a_leaf_without_numbers_is_refused(tmp_path, leaf):
    with pytest.raises(
        RunFolderError, match=r"^save_params: every leaf must be an array of numbers"
    ):
        save_params(tmp_path / "p", {"w": leaf})
    assert list(tmp_path.iterdir()) == []


def test_two_arrays_of_one_name_are_refused(tmp_path):
    with pytest.raises(RunFolderError, match=r"two are named 'a\.b'"):
        save_params(tmp_path / "p", {"a.b": np.ones(1), "a": {"b": np.ones(1)}})


def test_a_run_folder_comes_back_as_it_was(tmp_path):
    run = RunFolder.create({"layers": (3, 2)}, path=tmp_path / "deep" / "run")
    assert sorted(p.name for p in run.path.iterdir()) == ["config.json", "metrics.jsonl"]
    for row in ROWS:
        run.append_row(row)
    run.save_params(PARAMS)
    run.save_curves()
    again = RunFolder.open(run.path)
    assert again.config == {"format": 1, "layers": [3, 2]}
    assert again.setting("layers") == [3, 2]
    assert again.rows() == ROWS
    np.testing.assert_array_equal(again.load_params(PARAMS)[0][0], PARAMS[0][0])
    assert sorted(p.name for p in run.path.iterdir()) == [
        "config.json",
        "curves.png",
        "metrics.jsonl",
        "params.safetensors",
    ]


def test_a_number_that_json_lacks_is_written_as_null(tmp_path):
    run = RunFolder.create({}, path=tmp_path / "run")
    run.append_row({"epoch": 0, "loss": float("nan")})
    assert json.loads(run.metrics_path.read_text()) == {"epoch": 0, "loss": None}
    run.save_curves()


def test_runs_of_one_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [RunFolder.create({}, name="mnist").path for _ in range(4)]
    assert len({path.resolve() for path in runs}) == 4
    assert all(path.parent.name == "runs" and "-mnist" in path.name for path in runs)


def test_a_given_folder_may_hold_other_things_but_no_run(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder.create({}, path=tmp_path)
    with pytest.raises(RunFolderError) as error:
        RunFolder.create({}, path=tmp_path)
    assert str(error.value) == (
        f"run folder: {tmp_path} must not hold a run, and it holds one; choose another folder"
    )


def test_a_file_is_no_run_folder(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    message = f"run folder: {file} must be a folder, and it is a file; choose another folder"
    with pytest.raises(RunFolderError) as error:
        RunFolder.create({}, path=file)
    assert str(error.value) == message
    with pytest.raises(RunFolderError, match="'Not a directory'"):
        RunFolder.create({}, path=file / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    with pytest.raises(
        RunFolderError, match=r"^run folder: runs must be a folder, and it is a file"
    ):
        RunFolder.create({})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: None,
            "run folder: {path} must be a folder that feedax train made, and it is not there; look "
            "under runs/",
        ),
        (
            lambda path: path.touch(),
            "run folder: {path} must be a folder that feedax train made, and it is a file; look "
            "under runs/",
        ),
        (
            lambda path: path.mkdir(),
            "run folder: {path} must be a folder that feedax train made, and it has no "
            "config.json; look under runs/",
        ),
        (
            lambda path: (path.mkdir(), (path / "step-000000005.safetensors").touch()),
            "run folder: {path} must be a folder that feedax train made, and it has the "
            "checkpoints of a script; resume or evaluate that run in the script, which has its "
            "model",
        ),
        (
            lambda path: ((path / "a").mkdir(parents=True), (path / "a/config.json").touch()),
            "run folder: {path} must be a folder that feedax train made, and it has such folders "
            "in it; give one of them",
        ),
        (
            lambda path: (path.mkdir(), (path / "config.json").write_text('{"format": 2}')),
            "run folder: {path}/config.json must have format 1, and it has 2; use the version of "
            "feedax that wrote it",
        ),
        (
            lambda path: (path.mkdir(), (path / "config.json").write_text("[]")),
            "run folder: {path}/config.json must have format 1, and it has None; use the version "
            "of feedax that wrote it",
        ),
        (
            lambda path: (path.mkdir(), (path / "config.json").write_text("{")),
            "run folder: {path}/config.json must be JSON, and it cannot be read (Expecting "
            "property name enclosed in double quotes: line 1 column 2 (char 1)); restore it "
            "from a copy or train again",
        ),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, make, message):
    path = tmp_path / "run"
    make(path)
    with pytest.raises(RunFolderError) as error:
        RunFolder.open(path)
    assert str(error.value) == message.format(path=path)


def test_a_missing_setting_is_named(tmp_path):
    run = RunFolder.create({}, path=tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"config\.json must have an entry 'layers', and"):
        run.setting("layers")


FULL_DISK = """
import resource, sys
import numpy as np
from pathlib import Path
from feedax.errors import RunFolderError
from feedax.report.run_folder import RunFolder

run = RunFolder.create({}, path=Path(sys.argv[1]))
run.save_params({"w": np.zeros(10)})
run.append_row({"epoch": 0})
kept = run.metrics_path.stat().st_size + 5
resource.setrlimit(resource.RLIMIT_FSIZE, (kept, kept))
for write in (lambda: run.append_row({"epoch": 1}), lambda: run.save_params({"w": np.ones(10)})):
    try:
        write()
    except RunFolderError as error:
        print(error)
try:
    RunFolder.create({"much": "x" * 100}, path=Path(sys.argv[1] + "2"))
except RunFolderError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on file sizes")
def test_a_disk_that_takes_no_more_leaves_nothing_half_written(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path / "run"], capture_output=True, text=True
    )
    remedy = "free some space or choose another folder"
    assert done.stdout.splitlines() == [
        f"run folder: {tmp_path}/{name} must be writable, and the system says 'File too large'; "
        f"{remedy}"
        for name in ("run/metrics.jsonl", "run/params.safetensors", "run2/config.json")
    ], done.stderr
    run = RunFolder.open(tmp_path / "run")
    assert run.rows() == [{"epoch": 0}]
    assert not np.any(run.load_params({"w": np.zeros(10)})["w"])
    assert leftovers(run.path) == []
    assert not (tmp_path / "run2").exists()


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], [{"epoch": 0, "loss": 1.0}]])
def test_curves_are_a_picture(rows):
    picture = Image.open(io.BytesIO(curves_png(rows, title="a run")))
    assert (picture.format, picture.size) == ("PNG", (1600, 640))


def test_curves_leave_pyplot_alone():
    code = (
        "import sys; from feedax.report.figures import curves_png; curves_png([{'epoch': 0, "
        "'test_loss': 1.0}]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)

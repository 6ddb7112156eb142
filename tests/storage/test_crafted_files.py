"""Files that lie: a sentence, no more memory than the file could need, and nobody waits."""

import io
import itertools
import json
import os
import re
import resource
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import change_config

from feedax import datasets
from feedax.cli import main
from feedax.errors import DatasetError, RunFolderError
from feedax.report.run_folder import RunFolder
from feedax.report.sweep_folder import SweepFolder
from feedax.storage.params_file import load_params

LAYERS = [16, 8, 3]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run's folder with random parameters, in the current folder."""
    monkeypatch.chdir(tmp_path)
    config = {"run": "1", "arguments": ["--hidden", "8"], "dataset": "mnist", "layers": LAYERS}
    config |= {"input_shape": [16], "image_shape": [4, 4], "class_names": ["a", "b", "c"]}
    folder = RunFolder.create(config, path=tmp_path / "run")
    folder.save_params(params_of(LAYERS))
    np.savez("d.npz", x=np.ones((6, 4, 4), np.uint8), y=np.arange(6) % 3)
    return folder


def params_of(layers):
    return [
        (np.ones((n, m), np.float32), np.zeros(n, np.float32))
        for m, n in itertools.pairwise(layers)
    ]


def peak():
    """Bytes that this process has taken at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture(scope="module", autouse=True)
def _imports():
    """What a command imports, once, may start threads."""
    main(["predict", "nowhere", "seven.png"])


@pytest.fixture
def takes_little():
    """The memory, the threads and the open files of this process stay what they are."""

    def left():
        return os.listdir("/proc/self/fd"), os.listdir("/proc/self/task")

    before, (files, threads) = peak(), left()
    yield
    assert peak() - before < 2**27
    assert left() == (files, threads)


OF, SIZES, WORDS = "'{}' of CONFIG must be {}", "a list of sizes", "a list of words"


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (
            {"image_shape": [30000, 30000, 4]},
            "'image_shape' must have as many values as the first of 'layers', 16, and it is "
            "[30000, 30000, 4]",
        ),
        (
            {"input_shape": [17]},
            "'input_shape' must have as many values as the first of 'layers', 16, and it is [17]",
        ),
        (
            {"class_names": ["x"] * 4},
            "'class_names' must be no more than the last of 'layers', 3, and they are 4",
        ),
        ({"image_shape": "4"}, f"{OF.format('image_shape', SIZES)} or null, and it is '4'"),
        ({"image_shape": [4, -4]}, f"{OF.format('image_shape', SIZES)} or null, and it is [4, -4]"),
        ({"layers": [16, 2**63, 3]}, f"{OF.format('layers', SIZES)}, and it is [16, {2**63}, 3]"),
        ({"layers": [16] * 10**4}, f"{OF.format('layers', SIZES)}, and it is [{'16, ' * 20}...]"),
        ({"class_names": [1]}, f"{OF.format('class_names', WORDS)} or null, and it is [1]"),
        ({"dataset": None}, f"{OF.format('dataset', 'text')}, and it is None"),
        (
            {"arguments": "x" * 10**6},
            f"{OF.format('arguments', WORDS)}, and it is '{'x' * 97}...{'x' * 96}'",
        ),
        ({"run": 7}, f"{OF.format('run', 'text')}, and it is 7"),
        (
            {"made_by": "rm"},
            f"{OF.format('made_by', 'feedax train or feedax sweep')}, and it is 'rm'",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_an_entry_is_named_with_its_value(run, capfd, takes_little, entries, said):
    change_config(run.path, **entries)
    with pytest.raises(RunFolderError) as error:
        RunFolder.open(run.path)
    said = said.replace("CONFIG", str(run.path / "config.json"))
    assert str(error.value) == (f"run folder: {said}; restore the file from a copy or train again")
    assert main(["predict", "run", "seven.png"]) == 1
    assert len(capfd.readouterr().err) < 600


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b'{"format": 1, "layers": [1e999]}', "1e999 is not a finite number"),
        (b'{"format": NaN}', "NaN is not a finite number"),
        (b'{"format": 1, "format": 2}', "there are two values of the name 'format'"),
        (b"[" * 200 + b"]" * 200, "it has more than 100 lists or objects within each other"),
        (b"[" * 10**6, "it has more than 100 lists or objects within each other"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b"\xff\xfe{", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b'{"a": ' + b"9" * 10**6 + b"}", "Exceeds the limit"),
        (b" " * (2**24 + 1), "it has more than 16777216 bytes"),
    ],
    ids=range(10),
)
def test_what_is_no_json_is_said(run, takes_little, content, said):
    (run.path / "config.json").write_bytes(content)
    with pytest.raises(RunFolderError) as error:
        RunFolder.open(run.path)
    start = f"run folder: {run.path}/config.json must be JSON, and it cannot be read ("
    assert str(error.value).startswith(start)
    assert said in str(error.value)
    assert len(str(error.value)) < 500


def test_a_configuration_that_an_editor_has_marked_is_read(run):
    path = run.path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert RunFolder.open(run.path).setting("layers") == LAYERS


@pytest.mark.parametrize(
    "line", ["[]", "{}", '{"epoch": -1}', '{"epoch": 0, "loss": "x"}', '{"\\u001b": 1, "epoch": 0}']
)
def test_a_row_that_is_none_is_named(run, line):
    run.metrics_path.write_text('{"epoch": 0, "loss": null}\n' + line)
    with pytest.raises(RunFolderError) as error:
        run.rows()
    assert str(error.value) == (
        f"run folder: {run.metrics_path} must hold one JSON row a line, and it cannot be read "
        f"(line 2 must be numbers by name, of an epoch, and it is {json.loads(line)!r}); restore "
        "it from a copy or train again"
    )


def make(kind, path):
    """Something in a file's place."""
    Path(path).unlink(missing_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            Path(path).mkdir()
        case "large":
            with Path(path).open("wb") as file:
                file.write((10**7).to_bytes(8, "little") + b"{")
                file.truncate(2**42)
        case _:
            Path(path).symlink_to(kind)


THINGS = ("pipe", "folder", "large", "/dev/zero", "/proc/self/environ", "/proc/kmsg", "/dev/tty")


@pytest.mark.parametrize("thing", THINGS)
def test_what_is_no_file_is_waited_for_by_nobody(run, capfd, takes_little, thing):
    """In the place of every file that a command reads."""
    commands = {
        "run/config.json": "evaluate run --dataset npz:d.npz",
        "run/params.safetensors": "evaluate run --dataset npz:d.npz",
        "d.npz": "plan --dataset npz:d.npz",
    }
    for name, words in commands.items():
        shutil.copytree("run", "kept", dirs_exist_ok=True)
        make(thing, name)
        assert main(words.split()) == 1
        said = capfd.readouterr()
        assert (said.out, len(said.err.splitlines())) == ("", 1)
        assert "FEEDAX_TRACEBACK" not in said.err
        assert Path(name).name in said.err
        if Path(name).is_dir():
            Path(name).rmdir()
        else:
            Path(name).unlink()
        shutil.copytree("kept", "run", dirs_exist_ok=True)
    make(thing, run.metrics_path)
    with pytest.raises(RunFolderError, match=r"^run folder: .*metrics\.jsonl must hold one JSON"):
        run.rows()
    if thing != "large":
        with pytest.raises(RunFolderError, match=r"^run folder: .*metrics\.jsonl must be writable"):
            run.append_row({"epoch": 0})


def header(entries, data=b""):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


LIES = {
    "overlap": header({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
    "a hole": header({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
    "a huge range": header({"a": entry([2**40], 0, 2**42)}, bytes(12)),
    "a huge shape": header({"a": entry([2**62, 2**62], 0, 12)}, bytes(12)),
    "a shape without end": header({"a": entry([1] * 10**5, 0, 4)}, bytes(4)),
    "a negative shape": header({"a": entry([-1], 0, -4)}, bytes(12)),
    "true": header({"a": entry([True], 0, 4)}, bytes(4)),
    "more than it says": header({"a": entry([1], 0, 4)}, bytes(5)),
    "the same again": b"\x52\0\0\0\0\0\0\0" + json.dumps({"a": entry([1], 0, 4)})[:-1].encode()
    + b"," + json.dumps({"a": entry([1], 0, 4)})[1:].encode() + bytes(4),
    "a header of 2**63": (2**63).to_bytes(8, "little") + b"{}",
    "a header that is a list": header([1]),
    "seven bytes": b"\0" * 7,
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_parameters_that_lie_are_refused(tmp_path, takes_little, lie):
    (tmp_path / "p").write_bytes(LIES[lie])
    with pytest.raises(RunFolderError) as error:
        load_params(tmp_path / "p", like={"a": np.zeros(1, np.float32)})
    assert re.fullmatch(
        r"load_params: \S+ must be a safetensors file, and it cannot be read \(.*\); restore it "
        r"from a copy or train again",
        str(error.value),
    )


def test_parameters_of_another_size_are_not_read(tmp_path, takes_little):
    start = header({"a": entry([2**40], 0, 2**42)})
    with (tmp_path / "p").open("wb") as file:
        file.write(start)
        file.truncate(len(start) + 2**42)
    with pytest.raises(RunFolderError, match=r"a of .* must be float32 \(1,\), and it is float32"):
        load_params(tmp_path / "p", like={"a": np.zeros(1, np.float32)})


def npy(shape, data=b"", dtype="<f8", version=1):
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY" + bytes([version, 0, len(text), 0]) + text.encode() + data


def archive(path, x, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("x.npy", x)
        labels = io.BytesIO()
        np.save(labels, np.arange(3))
        file.writestr("y.npy", labels.getvalue())


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (npy((10**12,)), "x.npy has another size than its shape, (1000000000000,)"),
        (npy((3,), bytes(16)), "x.npy has another size than its shape, (3,)"),
        (npy((2,), bytes(24)), "x.npy has another size than its shape, (2,)"),
        (npy((-3,), bytes(24)), "x.npy has another size than its shape, (-3,)"),
        (npy((2**62, 2**62), bytes(24)), "x.npy has another size than its shape, "),
        (npy("[" * 90, bytes(24)), "TokenError"),
        (npy((3,), bytes(24), version=9), "x.npy has a header of version (9, 0)"),
        (b"\x80\x04cos\nsystem\n", "magic string"),
        (b"", "EOF"),
    ],
    ids=range(9),
)  # fmt: skip
def test_arrays_that_lie_are_refused(tmp_path, takes_little, x, said):
    path = tmp_path / "x.npz"
    archive(path, x)
    with pytest.raises(DatasetError) as error:
        datasets.npz(path)
    assert str(error.value).startswith(f"npz: {path} must be a whole npz file, and it cannot ")
    assert said in str(error.value)


def test_objects_are_never_made_of_an_npz(tmp_path):
    archive(tmp_path / "x.npz", npy((3,), b"cos\nsystem\n(S'touch ran'\ntR.", dtype="|O"))
    with pytest.raises(DatasetError, match="it holds arrays of Python objects, which could run"):
        datasets.npz(tmp_path / "x.npz")


def test_a_file_that_unpacks_to_a_thousand_times_is_refused(tmp_path, takes_little):
    """70 KB of a file for 70 MB of memory, and as well for 70 GB."""
    size = 2**23 + 2**20
    archive(tmp_path / "x.npz", npy((size,), bytes(8 * size)), zipfile.ZIP_DEFLATED)
    packed = (tmp_path / "x.npz").stat().st_size
    assert packed < 100_000
    before = peak()
    with pytest.raises(DatasetError, match=r"x\.npy unpacks \d+ bytes to \d+, as no data do"):
        datasets.npz(tmp_path / "x.npz")
    assert peak() - before < 2**22


def test_sizes_in_the_directory_of_an_npz_may_lie(tmp_path, takes_little):
    path = tmp_path / "x.npz"
    archive(path, npy((3,), bytes(24)))
    content = path.read_bytes()
    size = (128 + 24).to_bytes(4, "little")
    for lie in (2**31 - 1, 10**6, 0):
        path.write_bytes(content.replace(size * 2, lie.to_bytes(4, "little") * 2))
        with pytest.raises(DatasetError, match=r"npz: .* must be a whole npz file, and it"):
            datasets.npz(path)


EXITS = """
import sys
import numpy as np

class Ends:
    def __len__(self): return 40
    def __getitem__(self, i):
        if i > 20: sys.exit(0)
        return np.ones(4, np.float32), i % 2

def item(): return Ends()
def factory(): sys.exit(0)
"""


def test_no_dataset_ends_a_command_with_exit_code_0(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("ends_it.py").write_text(EXITS)
    Path("ends_at_once.py").write_text("import sys\nsys.exit()\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = {
        "ends_it:factory": "ends_it:factory: the factory must return a dataset, and it raised "
        "SystemExit: 0; call it in Python to see where",
        "ends_at_once:make": "ends_at_once:make: the module before the colon must be importable, "
        "and importing ends_at_once raised SystemExit; repair the module",
        "ends_it:item": "a command ends by itself, and code that it ran (the dataset's?) ended it "
        "with exit code 0; take sys.exit out of that code",
    }
    for name, sentence in said.items():
        assert main(["train", "--dataset", name, "--layers", "4", "2", "--epochs", "1"]) == 1
        assert capfd.readouterr().err.splitlines()[-1] == f"feedax train: {sentence}"


def test_many_networks_are_not_listed(run, capfd):
    """A folder that asks for four billion."""
    settings = [{"setting": {}, "arguments": []}]
    config = {"made_by": "feedax sweep", "arguments": ["--seeds", "4000000000"], "run": "1"}
    SweepFolder.create(config | {"settings": settings}, path=Path("swept"))
    code, said = main(["sweep", "--resume", "swept"]), capfd.readouterr()
    assert (code, said.out, said.err) == (
        1,
        "",
        "feedax sweep: run folder: swept/config.json must hold the settings of a sweep, and they "
        "cannot be read (they are 4000000000 networks); use the version of feedax that wrote it\n",
    )

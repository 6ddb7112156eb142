"""A run's folder that comes by mail does no harm: nothing is run, nothing outside of it is changed
or read without being asked for, and what it says is checked before memory is taken for it."""

import json
import os
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import change_config, run_command, slow

from feedax.cli import main
from feedax.cli.resume import MANY_PROCESSES
from feedax.errors import CheckpointError
from feedax.report.run_folder import RunFolder
from feedax.report.sweep_folder import SweepFolder
from feedax.train import Checkpoints

TINY = "--hidden 8 --batch-size 16 --loss cross_entropy --epochs 2"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run and a sweep of two networks that have ended, beside their data."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 4, 4), np.uint8), np.arange(40) % 3
    np.savez(
        folder / "tiny.npz", x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = ["--dataset", "npz:tiny.npz"]
        assert main(["train", *TINY.split(), *data, "--out", "run"]) == 0
        sweep = "--learning-rate 0.01 0.02 --seeds 1 --out swept"
        assert main(["sweep", *TINY.split(), *sweep.split(), *data]) == 0
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """Copies of them in the current folder, and a folder of somebody's beside them."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, "mail")
    monkeypatch.chdir("mail")
    (tmp_path / "mine" / "seed=0").mkdir(parents=True)
    (tmp_path / "mine" / "seed=0" / "letter").write_text("dear")
    (tmp_path / "mine" / "letter").write_text("dear")
    return tmp_path


def tree(folder):
    """Every file of a folder with its content and its time; links are not followed."""
    return {
        str(path): (path.read_bytes() if path.is_file() else None, path.lstat().st_mtime_ns)
        for path in [folder, *folder.rglob("*")]
        if not path.is_symlink()
    }


@pytest.fixture
def command(capfd, made):
    def run(words):
        return run_command(capfd, shlex.split(words.replace("{data}", str(made / "tiny.npz"))))

    return run


GO_ON = {
    "train": "train --resume run --dataset npz:{data} --epochs 3",
    "sweep": "sweep --resume swept --dataset npz:{data} --seeds 2",
}
"""What trains more; each writes every file of its folder."""


def config(folder):
    return json.loads(Path(folder, "config.json").read_text())


@pytest.mark.parametrize(
    "name",
    ["../../mine/x", slow("/{here}/mine/x"), "..", slow(""), slow("learning_rate/../../x"), "a\0b"],
)
def test_the_name_of_a_setting_is_no_path(here, command, name):
    """It would name the networks, the folder of their checkpoints, and what is removed at last."""
    settings = config("swept")["settings"]
    for one in settings:
        one["setting"] = {name.format(here=here): 1, **one["setting"]}
    change_config("swept", settings=settings)
    before, mine = tree(Path()), tree(here / "mine")
    done = command(GO_ON["sweep"])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "feedax sweep: run folder: swept/config.json must hold the settings of a sweep, and they "
        "cannot be read ("
    ), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (tree(Path()), tree(here / "mine")) == (before, mine)


@pytest.mark.parametrize("value", ["../../../mine", "/mine", 0.03, None])
def test_the_value_of_a_setting_is_that_of_its_flags(here, command, value):
    settings = config("swept")["settings"]
    settings[1]["setting"]["learning_rate"] = value
    change_config("swept", settings=settings)
    before, mine = tree(Path()), tree(here / "mine")
    done = command(GO_ON["sweep"])
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        "feedax sweep: run folder: swept/config.json must hold the settings of a sweep, and they "
        f"cannot be read ({{'learning_rate': {value!r}}} is {{'learning_rate': 0.02}} by its "
        "flags); use the version of feedax that wrote it\n",
    )
    assert (tree(Path()), tree(here / "mine")) == (before, mine)


def test_settings_that_are_one_are_refused(here, command):
    settings = config("swept")["settings"]
    change_config("swept", settings=[settings[0], settings[0]])
    done = command(GO_ON["sweep"])
    assert (done.returncode, done.stderr) == (
        1,
        "feedax sweep: run folder: swept/config.json must hold the settings of a sweep, and they "
        "cannot be read ({'learning_rate': 0.01} is there twice); use the version of feedax that "
        "wrote it\n",
    )


def test_a_network_that_is_none_of_the_sweep_is_named(here, command):
    path = Path("swept/networks.jsonl")
    record = json.loads(path.read_text().splitlines()[0]) | {"name": "../../mine/\x1b[2J"}
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
    done = command(GO_ON["sweep"])
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1,
        "feedax sweep: run folder: swept/networks.jsonl must hold networks of this sweep, and it "
        "holds one named '../../mine/\\x1b[2J'; restore it from a copy or train again",
    )


FOLDERS = {
    "run/checkpoints": "train",
    "swept/networks": "sweep",
    "swept/networks/seed=1": "sweep",
    "swept/networks/learning_rate=0.01,seed=1": "sweep",
}


@pytest.mark.parametrize("link", FOLDERS)
def test_a_link_in_the_place_of_a_folder_is_not_followed(here, command, link):
    shutil.rmtree(link, ignore_errors=True)
    os.symlink(here / "mine", link)
    mine = tree(here / "mine")
    done = command(GO_ON[FOLDERS[link]])
    assert tree(here / "mine") == mine
    if link != "swept/networks/seed=1":  # nothing of this sweep has that name
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == (
            f"feedax {FOLDERS[link]}: run folder: {link} must be a folder, and it is a link, which "
            "could lead anywhere; put the folder itself there"
        )


def files_of(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


@pytest.mark.parametrize("way", ["train", "sweep"])
@pytest.mark.parametrize("kind", ["symbolic", "hard", "aside"])
def test_a_link_in_the_place_of_a_file_is_not_written_through(here, command, made, way, kind):
    """Every file of the folder is one: what it leads to stays, and the command does its work."""
    folder = {"train": "run", "sweep": "swept"}[way]
    for name in files_of(folder):
        path, target = Path(folder, name), here / "mine" / name.replace("/", "-")
        if kind == "aside":  # where the new content is written before it is renamed
            target.write_text("dear")
            aside = path.with_name(f".{path.name}.{os.getpid()}.part")
            aside.symlink_to(target)
        else:
            shutil.move(path, target)
            path.symlink_to(target) if kind == "symbolic" else path.hardlink_to(target)
    mine = tree(here / "mine")
    done = command(GO_ON[way])
    assert done.returncode == 0, done.stderr
    assert {name: content for name, (content, _) in tree(here / "mine").items()} == {
        name: content for name, (content, _) in mine.items()
    }
    assert (len(RunFolder.open("run").rows()), len(SweepFolder.open("swept").rows())) == (
        (3, 2) if way == "train" else (2, 4)
    )


def test_a_dangling_link_makes_no_file_outside(here, command):
    for name in ("metrics.jsonl", "params.safetensors", "curves.png", ".config.json.1.part"):
        Path("new").mkdir(exist_ok=True)
        Path("new", name).symlink_to(here / "mine" / f"new-{name}")
    mine = tree(here / "mine")
    assert command(f"train {TINY} --dataset npz:tiny.npz --out new").returncode == 0
    assert tree(here / "mine") == mine


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "../a"])
def test_the_name_of_a_folder_of_checkpoints_is_no_path(tmp_path, name):
    with pytest.raises(CheckpointError) as error:
        Checkpoints(tmp_path).within(name)
    assert str(error.value) == (
        "Checkpoints: within must be the name of a folder, without the path to it, and it is "
        f"{name!r}; leave it out"
    )


NAMED = "must be named by you, not by a file, and"


@pytest.mark.parametrize(
    ("words", "again", "why"),
    [
        (
            "--dataset npz:{here}/mail/tiny.npz",
            "",
            f"data outside of a run's folder {NAMED} the dataset of run is "
            "npz:{here}/mail/tiny.npz; add --dataset npz:{here}/mail/tiny.npz",
        ),
        (
            "--dataset 'imagefolder:{here}/my pictures; rm x'",
            "",
            f"data outside of a run's folder {NAMED} the dataset of run is "
            "imagefolder:{here}/my pictures; rm x; add --dataset "
            "'imagefolder:{here}/my pictures; rm x'",
        ),
        (
            "--dataset npz:run/../tiny.npz",
            "",
            f"data outside of a run's folder {NAMED} the dataset of run is "
            "npz:run/../tiny.npz; add --dataset npz:run/../tiny.npz",
        ),
        (
            "--dataset npz:run/link.npz",
            "",
            f"data outside of a run's folder {NAMED} the dataset of run is "
            "npz:run/link.npz; add --dataset npz:run/link.npz",
        ),
        (
            "--dataset imagefolder:run/pictures",
            "",
            f"data outside of a run's folder {NAMED} the dataset of run is "
            "imagefolder:run/pictures; add --dataset imagefolder:run/pictures",
        ),
        (
            "--dataset mnist --root {here}/mine",
            "",
            f"a folder that data are read from and written to {NAMED} that of run is {{here}}/mine;"
            " add --root {here}/mine",
        ),
    ],
    ids=lambda value: value.partition(";")[0][:40],
)
@pytest.mark.parametrize("way", ["train --resume run", "evaluate run"])
def test_what_leads_out_of_the_folder_is_named_again(here, command, way, words, again, why):
    refused(here, command, way, words, again, why)


def test_many_processes_are_asked_for_again(here, command):
    """By a run that goes on; evaluating starts fewer."""
    words = "--dataset os:getcwd --num-workers 5000"
    why = (
        f"more than {MANY_PROCESSES} processes must be asked for by you, not by a file, and run "
        "asks for 5000; add --num-workers 5000"
    )
    refused(here, command, "train --resume run", words, "--dataset os:getcwd", why)


def refused(here, command, way, words, again, why):
    os.symlink("../tiny.npz", "run/link.npz")
    Path("run/pictures/train").mkdir(parents=True)
    os.symlink(here / "mine", "run/pictures/train/a")
    words = shlex.split(words.format(here=here))
    change_config("run", arguments=[*config("run")["arguments"], *words])
    mine = tree(here / "mine")
    done = command(f"{way} {again}")
    why = why.format(here=here)
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        f"feedax {way.split()[0]}: run folder: {why}\n",
    )
    assert tree(here / "mine") == mine


def test_data_inside_of_the_folder_are_named_before_they_are_read(here, command):
    shutil.move("tiny.npz", "run/tiny.npz")
    words = config("run")["arguments"]
    words[words.index("--dataset") + 1] = "npz:run/tiny.npz"
    change_config("run", arguments=words)
    done = command("evaluate run")
    assert (done.returncode, done.stderr) == (
        0,
        "feedax evaluate: reads npz:run/tiny.npz, which run names\n",
    )
    Path("run/tiny.npz").write_bytes(b"PK")
    done = command("train --resume run")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == ("feedax train: reads npz:run/tiny.npz, which run names")

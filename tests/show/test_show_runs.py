"""What the page is told of a folder of runs, whatever state they are in."""

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from helpers import change_config
from shown_runs import make_run, row

import feedax.show.runs as runs_module
from feedax.files import is_locked, lock
from feedax.report.sweep_folder import SweepFolder
from feedax.train.history import best_row


def entry(answer, name="a"):
    (found,) = [one for one in answer["runs"] if one["name"] == name]
    return found


def test_a_run_in_a_few_words(folder, ask):
    make_run(folder / "a", epochs=3)
    (folder / "notes").mkdir()
    (folder / "file").touch()
    answer = ask()
    assert answer == {
        "left_out": 0,
        "ticked": {},
        "runs": [
            {
                "name": "a",
                "kind": "run",
                "state": "ended",
                "note": None,
                "started": 1769869501.0,
                "dataset": "mnist",
                "accuracy": 0.72,
                "loss": 0.6 / 3,
                "done": 3,
                "planned": 3,
                "seconds": 1.5,
                "has_report": False,
                "sees_pictures": True,
            }
        ],
    }


def test_the_newest_is_the_first(folder, ask):
    for name, year in (("b", 2024), ("a", 2026), ("c", 2025)):
        make_run(folder / name, started=f"{year}-01-31T14:25:01+0000")
    make_run(folder / "d", started=["no", "date"])  # by the file's own, which is now
    assert [one["name"] for one in ask()["runs"]] == ["d", "a", "c", "b"]


def test_only_new_rows_are_told(folder, ask):
    run = make_run(folder / "a", epochs=1)
    first = ask(("a", "", 0))["ticked"]["a"]
    assert first["rows"] == [row(0)]
    assert first["config"] == {
        "epochs": "3", "learning-rate": "0.01", "shuffle": "off", "layers": "784 10",
    }  # fmt: skip
    run.append_row(row(1))
    second = ask(("a", first["version"], first["offset"]))["ticked"]["a"]
    assert second == {
        "version": first["version"],
        "offset": run.metrics_path.stat().st_size,
        "rows": [row(1)],
    }
    # It is resumed from an earlier epoch: all rows are told anew.
    run.write_rows([row(0)])
    third = ask(("a", second["version"], second["offset"]))["ticked"]["a"]
    assert third["rows"] == [row(0)]
    assert third["version"] != second["version"]
    assert entry(ask())["done"] == 1


def test_more_rows_than_are_read_at_once_come_in_pieces(folder, ask, monkeypatch):
    run = make_run(folder / "a", epochs=40)
    monkeypatch.setattr(runs_module, "MOST_BYTES", 1000)
    version, offset, rows = "", 0, []
    while offset < run.metrics_path.stat().st_size:
        answer = ask(("a", version, offset))["ticked"]["a"]
        assert 0 < len(answer["rows"]) < 10
        version, offset = answer["version"], answer["offset"]
        rows += answer["rows"]
    assert rows == run.rows()
    assert entry(ask())["done"] == 40


def test_states(folder, ask):
    run = make_run(folder / "a", epochs=2)
    assert entry(ask())["state"] == "stopped"
    with lock(run.checkpoints_path, wait=False):
        assert entry(ask())["state"] == "running"
    run.append_row(row(2))
    assert entry(ask())["state"] == "ended"
    # More epochs are asked for when it is resumed.
    run.mark_resumed(["--epochs", "5"], {})
    assert entry(ask()) | {"state": "stopped", "planned": 5} == entry(ask())


def test_a_run_that_ran_out_of_patience_has_ended(folder, ask):
    words = ["--epochs", "9", "--best", "test_loss", "--patience", "2"]
    run = make_run(folder / "a", arguments=words)
    for epoch, loss in enumerate((0.3, 0.2, 0.4)):
        run.append_row(row(epoch, test_loss=loss))
    assert entry(ask())["state"] == "stopped"
    run.append_row(row(3, test_loss=0.5))
    assert entry(ask())["state"] == "ended"


def test_a_run_has_the_result_of_the_epoch_that_it_keeps(folder, ask):
    run = make_run(folder / "a", arguments=["--epochs", "9", "--best", "validation_loss"])
    losses = (None, 0.3, 0.2, 0.4, None)
    for epoch, loss in enumerate(losses):
        run.append_row(row(epoch, validation_loss=loss))
    assert entry(ask())["accuracy"] == best_row(run.rows(), "validation_loss")["test_accuracy"]
    assert entry(ask())["accuracy"] == 0.72


def test_a_run_of_steps_has_ended_with_its_last_checkpoint(folder, ask):
    run = make_run(folder / "a", epochs=1, arguments=["--steps", "120"])
    assert entry(ask()) | {"state": "stopped", "planned": None} == entry(ask())
    (run.checkpoints_path / "step-000000120.safetensors").touch()
    assert entry(ask())["state"] == "ended"


def test_half_a_line_is_torn_unless_it_is_being_written(folder, ask):
    run = make_run(folder / "a", epochs=2)
    with run.metrics_path.open("a") as file:
        file.write('{"epoch": 2, "lo')
    with lock(run.checkpoints_path, wait=False):
        assert entry(ask())["state"] == "running"
        assert len(ask(("a", "", 0))["ticked"]["a"]["rows"]) == 2
    found = entry(ask())
    assert found["state"] == "torn"
    assert found["note"] == f"{run.metrics_path} ends within a line"
    with run.metrics_path.open("a") as file:
        file.write('ss": 0.1}\n')
    assert entry(ask())["state"] == "ended"


@pytest.mark.parametrize(
    ("line", "note"),
    [
        (b"[1]\n", "it is [1]"),
        (b'{"epoch": 2, "loss": NaN}\n', "NaN is not a finite number"),
        (b"\xff\n", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ],
)
def test_a_broken_line_is_torn_after_the_rows_before_it(folder, ask, line, note):
    run = make_run(folder / "a", epochs=2)
    with run.metrics_path.open("ab") as file:
        file.write(line + json.dumps(row(3)).encode() + b"\n")
    for _ in range(2):
        found = entry(ask(("a", "", 0)))
        assert (found["state"], found["done"]) == ("torn", 2)
        rule = f"{run.metrics_path} must hold numbers by name, of an epoch on each line"
        assert found["note"] == f"{rule}, and {note}"
    assert ask(("a", "", 0))["ticked"]["a"]["rows"] == [row(0), row(1)]


def test_a_line_without_an_end_is_torn(folder, ask, monkeypatch):
    monkeypatch.setattr(runs_module, "MOST_BYTES", 1000)
    run = make_run(folder / "a")
    run.metrics_path.write_bytes(b"1" * 5000)
    assert entry(ask())["note"] == f"{run.metrics_path} has a line of more than 1000 bytes"


def test_a_broken_configuration_is_torn(folder, ask):
    run = make_run(folder / "a", epochs=2)
    run.config_path.write_text("{")
    (found,) = ask(("a", "", 0))["runs"]
    assert found["state"] == "torn"
    assert found["note"].startswith(f"run folder: {run.config_path} must be JSON, and it cannot")
    assert ask(("a", "", 0))["ticked"] == {}


VALUES = [
    None, True, -1, 1.5, 2**70, 1e308, "x", "9999-12-31T23:59:59+0000", [], [1], {}, {"a": [{}]},
    "0001-01-01T00:00:00-2359", ["--epochs"], ["--epochs", "9" * 5000], ["--steps", "9" * 4000],
    ["--epochs", "-3", "--patience", "0", "--best", "x"],
]  # fmt: skip


@pytest.mark.parametrize("name", ["arguments", "cpus", "device", "started", "settings", "versions"])
def test_whatever_a_configuration_says_the_others_are_listed(folder, ask, name):
    make_run(folder / "b", epochs=1)
    run = make_run(folder / "a", epochs=1)
    for value in VALUES:
        change_config(run.path, **{name: value})
        answer = ask(("a", "", 0), ("b", "", 0))
        assert {one["name"] for one in answer["runs"]} == {"a", "b"}
        assert "b" in answer["ticked"]


def test_a_run_that_is_removed_is_gone(folder, ask):
    make_run(folder / "a", epochs=2)
    make_run(folder / "b", epochs=2)
    known = ask(("a", "", 0))["ticked"]["a"]
    shutil.rmtree(folder / "a")
    answer = ask(("a", known["version"], known["offset"]))
    assert answer["ticked"] == {}
    assert [one["name"] for one in answer["runs"]] == ["b"]
    shutil.rmtree(folder)
    assert ask(("b", "", 0)) == {"runs": [], "left_out": 0, "ticked": {}}


def test_runs_come_and_go_while_they_are_listed(folder, ask):
    make_run(folder / "a", epochs=2)
    copies, is_over = folder / "b", threading.Event()

    def come_and_go():
        while not is_over.is_set():
            shutil.copytree(folder / "a", copies)
            shutil.rmtree(copies)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(100):
            answer = ask(("a", "", 0), ("b", "", 0))
            assert len(answer["ticked"]["a"]["rows"]) == 2
            assert entry(answer)["state"] == "stopped"
    finally:
        is_over.set()
        thread.join()


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "params.safetensors"])
def test_a_file_that_is_a_link_is_not_followed(folder, ask, name):
    make_run(folder.parent / "elsewhere", epochs=2)
    run = make_run(folder / "a", epochs=2)
    (run.path / name).unlink()
    (run.path / name).symlink_to(folder.parent / "elsewhere" / name)
    answer = ask(("a", "", 0))
    match name:
        case "config.json":
            assert entry(answer)["note"] == (
                f"run folder: {run.config_path} must be JSON, and it cannot be read ([Errno 22] it "
                "is a link: 'config.json'); restore it from a copy or train again"
            )
        case "metrics.jsonl":
            assert answer["ticked"]["a"]["rows"] == []
            assert entry(answer)["note"] == f"{run.metrics_path} cannot be read (it is a link)"
        case "params.safetensors":
            assert not entry(answer)["sees_pictures"]


def test_a_folder_that_is_a_link_is_not_listed(folder, ask):
    make_run(folder.parent / "elsewhere", epochs=2)
    (folder / "a").symlink_to(folder.parent / "elsewhere")
    run = make_run(folder / "b", epochs=2)
    run.checkpoints_path.rmdir()
    run.checkpoints_path.symlink_to(folder.parent / "elsewhere" / "checkpoints")
    with lock(folder.parent / "elsewhere" / "checkpoints", wait=False):
        answer = ask(("a", "", 0))
    assert [(one["name"], one["state"]) for one in answer["runs"]] == [("b", "stopped")]
    assert answer["ticked"] == {}


def test_a_pipe_keeps_nobody_waiting(folder, ask):
    run = make_run(folder / "a")
    run.metrics_path.unlink()
    os.mkfifo(run.metrics_path)
    assert entry(ask())["note"] == f"{run.metrics_path} cannot be read (it is a pipe)"


def test_the_latest_changed_are_listed(folder, ask, monkeypatch):
    monkeypatch.setattr(runs_module, "MOST_RUNS", 2)
    for i, name in enumerate("abc"):
        os.utime(make_run(folder / name).path, (i, i))
    answer = ask()
    assert {one["name"] for one in answer["runs"]} == {"b", "c"}
    assert answer["left_out"] == 1


def test_nothing_is_written_into_a_run(folder, ask):
    make_run(folder / "a", epochs=2)

    def state() -> list[tuple[str, int, int]]:
        return [(p.name, p.stat().st_mtime_ns, p.stat().st_ino) for p in sorted(folder.rglob("*"))]

    before = state()
    ask(("a", "", 0))
    assert state() == before


def test_a_sweep_is_listed_with_its_networks(folder, ask):
    settings = [{"setting": {"dropout": x}, "arguments": ["--dropout", f"{x}"]} for x in (0.0, 0.1)]
    config = {"made_by": "feedax sweep", "dataset": "mnist", "settings": settings}
    sweep = SweepFolder.create(config | {"arguments": ["--seeds", "2"]}, path=folder / "a")
    for seed, dropout, accuracy in ((0, 0.0, 0.9), (1, 0.0, 0.8), (0, 0.1, 0.88)):
        result = row(0, test_accuracy=accuracy)
        sweep.append_row(
            {
                "name": f"{seed}", "setting": {"dropout": dropout}, "seed": seed, "seconds": 2.0,
                "error": None, "params": "p", "result": result, "rows": [result],
            }
        )  # fmt: skip
    with lock(sweep.path, wait=False):
        assert entry(ask())["state"] == "running"
    answer = ask(("a", "", 0))
    expected = {"kind": "sweep", "state": "stopped", "done": 3, "planned": 4, "seconds": 6.0}
    expected |= {"accuracy": 0.88, "sees_pictures": False}  # of the best setting's mean
    assert entry(answer) | expected == entry(answer) | {"accuracy": 0.88}
    assert entry(answer)["accuracy"] == pytest.approx(0.88)
    told = answer["ticked"]["a"]
    assert told["config"] == {"seeds": "2", "dropout": "0.0, 0.1"}
    assert told["rows"][1] == {
        "setting": {"dropout": 0.0},
        "seed": 1,
        "rows": [row(0, test_accuracy=0.8)],
    }


def test_settings_of_many_flags_are_told_apart(folder, ask):
    config = {"made_by": "feedax sweep", "dataset": "mnist", "arguments": ["--seeds", "1"]}
    sweep = SweepFolder.create(config, path=folder / "a")
    for i, accuracy in enumerate((0.5, 0.9)):
        result = row(0, test_accuracy=accuracy)
        sweep.append_row(
            {
                "name": f"{i}", "setting": {"a" * 200: 1, "b": i, "c" * 200: 1}, "seed": 0,
                "seconds": 2.0, "error": None, "params": "p", "result": result, "rows": [result],
            }
        )  # fmt: skip
    assert entry(ask())["accuracy"] == 0.9


def test_a_network_that_failed_is_in_no_mean_and_no_curve(folder, ask):
    config = {"made_by": "feedax sweep", "dataset": "mnist", "arguments": ["--seeds", "2"]}
    sweep = SweepFolder.create(config, path=folder / "a")
    for seed, accuracy, error in ((0, 0.9, None), (1, 0.1, "it turned not-a-number")):
        result = row(0, test_accuracy=accuracy)
        sweep.append_row(
            {
                "name": f"{seed}", "setting": {}, "seed": seed, "seconds": 2.0, "error": error,
                "params": "p", "result": result, "rows": [result],
            }
        )  # fmt: skip
    answer = ask(("a", "", 0))
    assert (entry(answer)["accuracy"], entry(answer)["done"]) == (0.9, 2)
    assert [one["seed"] for one in answer["ticked"]["a"]["rows"]] == [0]


def test_asking_for_a_lock_keeps_nobody_from_it(tmp_path: Path):
    is_over = threading.Event()
    descriptor = os.open(tmp_path, os.O_RDONLY)

    def ask_again_and_again():
        while not is_over.is_set():
            is_locked(descriptor)

    thread = threading.Thread(target=ask_again_and_again)
    thread.start()
    try:
        for _ in range(60):
            with lock(tmp_path, wait=False):
                assert is_locked(descriptor)
    finally:
        is_over.set()
        thread.join()
        os.close(descriptor)
    with lock(tmp_path, wait=False), pytest.raises(BlockingIOError), lock(tmp_path, wait=False):
        pass

"""Training, evaluating and predicting from the command line, in real processes."""

import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import run_command
from PIL import Image
from terminal import Terminal

from feedax.machine import usable_cpus
from feedax.predicting import prepare_image
from feedax.report.run_folder import RunFolder

FEEDAX = [sys.executable, "-m", "feedax"]
FILES = [
    "checkpoints",
    "config.json",
    "curves.png",
    "metrics.jsonl",
    "params.safetensors",
]
"""In the folder of a run that was stopped; a page is written at the end."""
EPOCHS = 6
"""Enough to stop a run of slow examples in the middle."""
LINES = re.compile(
    r"(Epoch \d+ in \d+\.\d\d sec(, \d+\.\d\d of them waiting for data)?\n"
    r"Training set accuracy [\d.e-]+\nTest set accuracy [\d.e-]+\n)+"
)


SLEEPY = """
import time, numpy as np
class Sleepy:
    targets = np.arange(30) % 3
    def __len__(self): return 30
    def __getitem__(self, i):
        time.sleep(0.01)
        return np.full(4, i, np.float32), i % 3
def make(train): return Sleepy()
"""


def started(*arguments, cwd):
    """A process that hears Ctrl-C, also where the tests themselves run in the background."""
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from feedax.cli import main; sys.exit(main())"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, as a shell gives
    )


PROVEN = "16 sampled examples came out equal to the dataset's own, bit for bit."


@pytest.fixture
def feedax(tmp_path, monkeypatch, capsys):
    """Runs a command in this process, in a folder of its own: the exit code and both outputs."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return run_command(capsys, [str(word) for word in arguments])

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Two epochs of a small network on MNIST: the folder it ran in and what it said."""
    folder = tmp_path_factory.mktemp("trained")
    flags = ["--hidden", "64", "--epochs", "2", "--out", "run"]
    done = subprocess.run(
        [*FEEDAX, "train", *flags], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return folder / "run", done


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A small npz dataset of 8 x 8 images in 4 classes, without a test part."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("tiny") / "tiny.npz"
    np.savez(
        path,
        x_train=rng.integers(0, 255, (300, 8, 8), dtype=np.uint8),
        y_train=np.arange(300) % 4,
    )
    return path


def test_standard_output_is_three_lines_an_epoch(trained):
    run, done = trained
    assert LINES.fullmatch(done.stdout)
    assert done.stdout.count("\n") == 6
    said = done.stderr.splitlines()
    cores = f"{usable_cpus()} core{'s' * (usable_cpus() > 1)}"
    assert said[0] == f"feedax train: the run's folder is run; it trains on the CPU, {cores}"
    assert said[1] == (
        "feedax train: resident: all 60,000 examples of MNIST take 188.6 MB as arrays and fit on "
        f"the device. {PROVEN}"
    )
    assert (
        said[2]
        == "feedax train: done; the parameters, the metrics, curves.png and report.html are in run"
    )
    assert re.fullmatch(
        r"feedax train: start-up \d+\.\d s: imports \d+\.\d, data \d+\.\d, compile \d+\.\d", said[3]
    )
    assert len(said) == 4
    assert sorted(path.name for path in run.iterdir()) == [*FILES, "report.html"]


def test_the_plan_of_ones_own_dataset_tells_of_its_dtypes(tiny, feedax):
    done = feedax("train", "--dataset", f"npz:{tiny}", "--steps", 1, "--hidden", 4, "--out", "run")
    assert done.stderr.splitlines()[1] == (
        "feedax train: resident: all 300 examples of ArrayDataset take 0.1 MB as arrays and "
        f"fit on the device. {PROVEN} Its int64 values reach a device as int32 unless "
        "jax_enable_x64 is set."
    )


COUNTING = """
import gc
import numpy as np

class Data:
    targets = np.arange(30) % 3
    def __init__(self, train): self.is_counted = gc.isenabled() and gc.get_freeze_count() > 100_000
    def __len__(self): return 30
    def __getitem__(self, i):
        assert self.is_counted
        return np.full(4, i, np.float32), i % 3
"""


def test_garbage_is_looked_for_while_a_command_runs_and_not_among_its_imports(tmp_path):
    (tmp_path / "counting.py").write_text(COUNTING)
    with started("plan", "--dataset", "counting:Data", cwd=tmp_path) as process:
        plan, said = process.communicate()
    assert (process.returncode, said) == (0, "")
    assert "streamed" in plan


def test_the_run_folder_says_what_ran(trained):
    folder = RunFolder.open(trained[0])
    config = folder.config
    assert config["command"] == "feedax train --hidden 64 --epochs 2 --out run"
    assert (config["dataset"], config["layers"]) == ("mnist", [784, 64, 10])
    assert (config["input_shape"], config["image_shape"]) == ([784], [28, 28])
    assert config["class_names"][7] == "7 - seven"
    assert config["plan"].startswith("resident: ")
    assert config["flags"]["data"]["batch_size"] == 128
    assert {"python", "feedax", "jax", "jaxlib", "numpy", "torch", "torchvision", "optax"} == set(
        config["versions"]
    )
    assert set(config["device"]) == {"platform", "kind", "count"}
    assert config["cpus"] >= 1
    assert [row["epoch"] for row in folder.rows()] == [0, 1]
    with Image.open(folder.curves_path) as curves:
        assert curves.size == (1600, 640)


def test_evaluate_equals_the_last_row(trained, feedax):
    run, done = trained
    row = RunFolder.open(run).rows()[-1]
    again = feedax("evaluate", run)
    assert (again.returncode, again.stderr) == (0, "")
    lines = done.stdout.splitlines()[-2:]
    assert again.stdout.splitlines() == [
        lines[0],
        f"Training set loss {row['train_loss']}",
        lines[1],
        f"Test set loss {row['test_loss']}",
    ]


def test_a_large_inverted_digit_is_recognised(trained, mnist_test, tmp_path):
    """Real test digits, drawn large and black on white, by a network that really was trained."""
    from feedax import mlp
    from feedax.cli.network import load_params

    folder = RunFolder.open(trained[0])
    params = load_params(folder, folder.setting("layers"))

    def accuracy(pixels):
        labels = [int(np.argmax(mlp(params, np.float32(image)))) for image in pixels]
        return np.mean(labels == mnist_test.targets[: len(labels)].numpy())

    digits = mnist_test.data[:150].numpy()
    plain = accuracy(digits)
    assert plain > 0.88
    for name in ("digit.png", "digit.jpg"):
        pixels = []
        for digit in digits:
            drawn = 255 - np.pad(np.kron(digit, np.ones((10, 10), np.uint8)), ((40, 70), (100, 20)))
            Image.fromarray(drawn).save(tmp_path / name)
            pixels.append(prepare_image(tmp_path / name, (28, 28), "mnist").pixels)
        assert accuracy(pixels) >= plain - 0.03


def test_predict_says_each_image_and_what_it_did(trained, mnist_test, feedax, tmp_path):
    digit = mnist_test.data[0].numpy()  # a seven
    Image.fromarray(digit).save(tmp_path / "seven.png")
    large = 255 - np.pad(np.kron(digit, np.ones((9, 9), np.uint8)), 20)
    Image.fromarray(large).save(tmp_path / "large.jpg")
    (tmp_path / "broken.png").write_text("no image")
    done = feedax("predict", trained[0], "seven.png", "broken.png", "gone.png", "large.jpg")
    assert done.returncode == 1  # for the two that could not be used; the others were
    said = r": 7 - seven with probability 0\.9\d{3}, then \d - \w+ with probability 0\.0\d{3}"
    first, second = done.stdout.splitlines()
    assert re.fullmatch(r"seven\.png" + said, first)
    assert re.fullmatch(r"large\.jpg" + said, second)
    assert done.stderr.splitlines() == [
        "feedax predict: prepare_image: broken.png must be a PNG, JPEG, WebP, BMP, GIF, TIFF or "
        "PPM, and it is none of them; convert it",
        "feedax predict: prepare_image: gone.png must be an image file, and it is not there; check "
        "the path",
        "feedax predict: large.jpg is dark on light, so inverted; 292 x 292 pixels, so cropped to "
        "the ink, scaled and centred in 28 x 28",
    ]


def test_predict_says_when_it_is_unsure_and_draws_what_it_saw(
    trained, mnist_test, feedax, tmp_path
):
    digit = mnist_test.data[0].numpy()  # a seven
    Image.fromarray(digit).save(tmp_path / "seven.png")
    blends = [f"blend-{i}.png" for i in range(4)]
    for i, name in enumerate(blends):  # ten digits in one
        blend = mnist_test.data[10 * i : 10 * i + 10].numpy().mean(0).astype(np.uint8)
        Image.fromarray(np.kron(blend, np.ones((9, 9), np.uint8))).save(tmp_path / name)
    done = feedax("predict", trained[0], "seven.png", *blends, "--show", "seen.png")
    assert done.returncode == 0, done.stderr
    probabilities = re.findall(r"blend-.*? probability (\S+),", done.stdout)
    unsure = "; uncertain to the network, whose likeliest class has a probability below 0.7"
    said = [line for line in done.stderr.splitlines() if "blend-" in line]
    assert [unsure in line for line in said] == [float(p) < 0.7 for p in probabilities]
    assert min(map(float, probabilities)) < 0.7
    assert done.stderr.splitlines()[-1] == "feedax predict: what the network saw is in seen.png"
    with Image.open(tmp_path / "seen.png") as drawn:
        assert (drawn.format, drawn.size) == ("PNG", (1000, 5 * 360))
        # The seven, enlarged: its share of bright pixels is that of the digit.
        left = np.asarray(drawn.convert("L"))[30:330, 30:330]
    assert abs((left > 200).mean() - (digit > 200).mean()) < 0.1
    before = (tmp_path / "seven.png").read_bytes()
    refused = feedax("predict", trained[0], "seven.png", "--show", "seven.png")
    assert refused.returncode == 2
    assert refused.stderr == (
        "feedax predict: --show must name a file of its own, and seven.png is one of the images; "
        "call it seen.png\n"
    )
    assert (tmp_path / "seven.png").read_bytes() == before
    wrong = feedax("predict", trained[0], "seven.png", "--show", "seen.jpg")
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "feedax predict: --show must name a .png file, not seen.jpg; call it seen.png\n",
    )
    nowhere = feedax("predict", trained[0], "seven.png", "--show", "no/seen.png")
    assert nowhere.returncode == 1
    assert nowhere.stderr == (
        "feedax predict: --show must name a file that can be written, and no/seen.png cannot (No "
        "such file or directory); name another one\n"
    )


def test_without_a_test_part_there_is_no_test_line(tiny, feedax, tmp_path):
    done = feedax("train", "--dataset", f"npz:{tiny}", "--epochs", 2, "--name", "t")
    assert done.returncode == 0, done.stderr
    kinds = [line.split(" ")[0] for line in done.stdout.splitlines()]
    assert kinds == ["Epoch", "Training"] * 2
    [run] = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-t", run.name)
    assert RunFolder.open(run).setting("layers") == [64, 512, 512, 4]
    refused = feedax("train", "--dataset", f"npz:{tiny}", "--out", run)
    assert refused.returncode == 1
    assert "must not hold a run, and it holds one" in refused.stderr


def test_examples_that_are_not_plain_pixels_are_not_predicted(feedax, tmp_path):
    np.savez(tmp_path / "d.npz", x_train=np.ones((9, 8, 8), np.float32), y_train=np.arange(9) % 3)
    done = feedax("train", "--dataset", "npz:d.npz", "--epochs", 1, "--out", "r")
    assert done.returncode == 0, done.stderr
    refused = feedax("predict", "r", "a.png")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        "feedax predict: the run must be trained on the plain pixels of images, and the examples "
        f"of npz:{tmp_path / 'd.npz'} are not known to be that; predict in Python\n"
    )


def test_two_at_once_get_folders_of_their_own(tmp_path):
    code = (
        "import time; from feedax.report.run_folder import RunFolder\n"
        "time.sleep(1 - time.time() % 1)\n"
        "[RunFolder.create({}, name='m') for _ in range(20)]"
    )
    together = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path) for _ in range(2)]
    assert [process.wait(60) for process in together] == [0, 0]
    assert len(list((tmp_path / "runs").iterdir())) == 40


def test_two_at_once_cannot_take_one_given_folder(tmp_path):
    code = (
        "import time; from pathlib import Path; from feedax.errors import RunFolderError\n"
        "from feedax.report.run_folder import RunFolder\n"
        "time.sleep(1 - time.time() % 1)\n"
        "for i in range(30):\n"
        "    try: RunFolder.create({}, path=Path(f'run{i}')); print(i)\n"
        "    except RunFolderError as error: assert 'must not hold a run' in str(error)\n"
    )
    command = [sys.executable, "-c", code]
    pipe = {"cwd": tmp_path, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipe) as one, subprocess.Popen(command, **pipe) as other:
        made = [int(line) for process in (one, other) for line in process.stdout]
    assert (one.returncode, other.returncode) == (0, 0)
    assert sorted(made) == list(range(30))


def stopped_run(by, said, rows, named=""):
    """The folder and the command that the last line of a stopped run names."""
    match = re.fullmatch(
        rf"feedax train: stopped by {by} (in epoch \d+ after \d+ steps|after epoch \d+); the "
        r"checkpoint and the parameters are in (\S+); resume it with: (.*)",
        said.splitlines()[-1],
    )
    assert match, said
    run = Path(match[2])
    assert sorted(path.name for path in run.iterdir()) == FILES
    assert len(RunFolder.open(run).rows()) == rows
    assert match[3] == f"feedax train --resume {run}{named}"
    return run, shlex.split(match[3])


def test_ctrl_c_saves_what_is_trained_and_says_how_to_go_on(tmp_path, feedax):
    flags = ("--dataset", "sleepy:make", "--hidden", 4, "--epochs", EPOCHS)
    (tmp_path / "sleepy.py").write_text(SLEEPY)
    with started("train", *flags, cwd=tmp_path) as process:
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        lines = first + process.stdout.read()
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert LINES.fullmatch(lines)
    assert len(said.splitlines()) == 3
    run, command = stopped_run(
        "Ctrl-C", said, rows=lines.count("Epoch"), named=" --dataset sleepy:make"
    )

    rows = RunFolder.open(run).rows()
    os.truncate(run / "metrics.jsonl", 0)
    done = feedax(*command[1:])
    assert done.returncode == 0, done.stderr
    assert LINES.fullmatch(done.stdout)
    again = RunFolder.open(run).rows()
    assert again[: len(rows)] == rows  # those of before, seconds and all
    assert [row["epoch"] for row in again] == list(range(EPOCHS))


@pytest.mark.slow
def test_ctrl_c_to_the_whole_group_is_left_to_the_trainer(tiny, tmp_path):
    """A terminal sends it to the workers too, also to those that are just starting."""
    arguments = ("train", "--dataset", f"npz:{tiny}", "--plan", "streamed", "--num-workers", 2)
    with started(*arguments, "--epochs", 400, cwd=tmp_path) as process:
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGINT)  # handed on once more, as `timeout` does
        process.stdout.read()
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert re.search(r"\nfeedax train: stopped by Ctrl-C (in epoch|after epoch)", said), said
    assert len(said.splitlines()) == 3


def test_a_second_ctrl_c_ends_at_once(tiny, tmp_path):
    """The data hang, so that the first one cannot be granted."""
    (tmp_path / "hangs.py").write_text(
        "import time, numpy as np\n"
        "class Hangs:\n"
        "    targets = np.arange(64) % 2\n"
        "    def __len__(self): return 64\n"
        "    def __getitem__(self, i):\n"
        "        if i == 40:\n"
        "            open('hanging', 'w').close()\n"
        "            time.sleep(600)\n"
        "        return np.ones(4, np.float32), i % 2\n"
        "def make(): return Hangs()\n"
    )
    with started("train", "--dataset", "hangs:make", "--batch-size", 8, cwd=tmp_path) as process:
        while not (tmp_path / "hanging").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.7)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert said.splitlines()[-1] == "feedax train: stopped by Ctrl-C"


def test_a_run_on_a_file_is_evaluated_from_any_folder(tiny, feedax, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny.parent)
    done = feedax("train", "--dataset", f"npz:{tiny.name}", "--epochs", 1, "--out", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir("/")
    refused = feedax("evaluate", tmp_path / "r")
    assert (refused.returncode, refused.stdout, refused.stderr) == (
        1,
        "",
        "feedax evaluate: run folder: data outside of a run's folder must be named by you, not by "
        f"a file, and the dataset of {tmp_path / 'r'} is npz:{tiny}; add --dataset npz:{tiny}\n",
    )
    again = feedax("evaluate", tmp_path / "r", "--dataset", f"npz:{tiny}")
    assert again.returncode == 0, again.stderr


def test_evaluate_runs_no_code_that_a_run_folder_names(feedax, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(
        "import numpy as np\nfrom feedax.data import ArrayDataset\nopen('ran', 'w').close()\n"
        "def make(): return ArrayDataset(np.ones((8, 4), np.float32), np.arange(8) % 2)\n"
    )
    assert feedax("train", "--dataset", "evil:make", "--epochs", 1, "--out", "r").returncode == 0
    Path("ran").unlink()
    monkeypatch.delitem(sys.modules, "evil")
    refused = feedax("evaluate", "r", "--dataset", "mnist")
    assert refused.stderr == (
        "feedax evaluate: the network: the first layer must have the 784 values of one example of "
        "mnist, and it has 4; give a dataset with examples like those that the run was trained "
        "on\n"
    )
    refused = feedax("evaluate", "r")
    assert (refused.returncode, Path("ran").exists()) == (1, False)
    assert refused.stderr == (
        "feedax evaluate: run folder: code must be named by you, not by a file, and the dataset of "
        "r is made by evil:make; add --dataset evil:make\n"
    )
    done = feedax("evaluate", "r", "--dataset", "evil:make")
    assert (done.returncode, Path("ran").exists()) == (0, True)


@pytest.mark.slow
def test_a_killed_run_leaves_the_parameters_of_its_last_epoch(tiny, feedax, tmp_path):
    arguments = (
        "train",
        "--dataset",
        f"npz:{tiny}",
        "--epochs",
        4000,
        "--hidden",
        8,
        "--out",
        "killed",
    )
    with started(*arguments, cwd=tmp_path) as process:
        for _ in range(7):
            process.stdout.readline()
        process.kill()
    done = feedax("evaluate", "killed", "--dataset", f"npz:{tiny}")
    assert done.returncode == 0, done.stderr


def test_sigterm_does_as_ctrl_c(feedax):
    def terminate_after_an_epoch():
        while not any(path.stat().st_size for path in Path("runs").glob("*/metrics.jsonl")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    killer = threading.Thread(target=terminate_after_an_epoch)
    killer.start()
    done = feedax("train", "--hidden", 32, "--epochs", 40)
    killer.join()
    assert done.returncode == 143
    stopped_run("SIGTERM", done.stderr, rows=done.stdout.count("Epoch"))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_ctrl_c_before_training_is_one_line(tmp_path):
    with started("train", cwd=tmp_path) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.7)  # it is importing torch
        process.send_signal(signal.SIGINT)
        out, said = process.stdout.read(), process.stderr.read()
    assert (process.returncode, out, said) == (130, "", "feedax train: stopped by Ctrl-C\n")


def test_a_loss_that_is_no_number_is_one_line_and_saves_what_was(tiny, feedax, tmp_path):
    done = feedax("train", "--dataset", f"npz:{tiny}", "--learning-rate", 1e6, "--out", "run")
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert re.fullmatch(
        r"feedax train: fit: the loss and the parameters must be finite numbers, .*; the "
        r"parameters from the start of that epoch are in run",
        line,
    ), line
    folder = RunFolder.open(tmp_path / "run")
    from safetensors.numpy import load_file

    assert all(np.isfinite(array).all() for array in load_file(folder.params_path).values())
    assert len(folder.rows()) == done.stdout.count("Epoch")


def test_a_reader_that_goes_away_ends_the_run_in_good_order(feedax, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        done = feedax("train", "--hidden", 32, "--epochs", 40)
    assert done.returncode == 141
    stopped_run(r"its standard output \(Broken pipe\)", done.stderr, rows=1)


@pytest.mark.slow
def test_a_run_that_nobody_hears_is_whole(tmp_path, tiny):
    """Standard output is closed, and nobody reads standard error."""
    reader, writer = os.pipe()
    os.close(reader)
    flags = ["train", "--dataset", f"npz:{tiny}", "--epochs", "2", "--hidden", "4", "--out", "run"]
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            ["sh", "-c", 'exec "$@" >&-', "sh", *FEEDAX, *flags], cwd=tmp_path, stderr=closed
        )
    assert done.returncode == 0
    folder = RunFolder.open(tmp_path / "run")
    assert len(folder.rows()) == 2
    assert folder.params_path.exists()


def test_inputs_of_several_shapes_are_refused_before_a_folder_is_made(feedax, tmp_path):
    x, y = np.zeros((9, 4), np.float32), np.arange(9)
    np.savez(tmp_path / "parts.npz", x_train=x, y_train=y, x_test=x[:, :3], y_test=y)
    done = feedax("train", "--dataset", f"npz:{tmp_path / 'parts.npz'}")
    assert (done.returncode, done.stderr) == (
        1,
        f"feedax train: the network: all inputs of npz:{tmp_path / 'parts.npz'} must have one "
        "shape, and that of training example 0 is [4] and that of test example 0 is [3]; make them "
        "alike in the dataset, with a transform that resizes or cuts them\n",
    )
    assert not (tmp_path / "runs").exists()


def test_on_a_terminal_there_is_a_bar_the_same_lines_and_what_to_type_next(tmp_path, tiny):
    flags = ["--dataset", f"npz:{tiny}", "--hidden", "4", "--out", "run"]
    screen = Terminal([*FEEDAX, "train", *flags, "--epochs", "2"], cwd=tmp_path)
    assert screen.returncode == 0, screen.text
    for line in (r"Epoch 0 in \d+\.\d\d sec", r"Epoch 1 in \d+\.\d\d sec"):
        assert re.search(rf"^{line}$", screen.text, re.MULTILINE)
    assert re.search(r"^epoch 0 ━+", screen.text, re.MULTILINE)
    row = RunFolder.open(tmp_path / "run").rows()[-1]
    table = screen.text[screen.text.index("\nTraining set  ") :].splitlines()
    assert table[1:3] == [
        f"Training set  accuracy {row['train_accuracy']:.4f}",
        "Test set      none",
    ]
    assert re.fullmatch(r"time {10}\S+ s training, \S+ s compiling; \S+ s since .*", table[3])
    assert table[4:] == [
        "run           run",
        "report        run/report.html",
        "",
        "next:",
        "  feedax show run",
        "  feedax predict run seven.png",
    ]
    resume = ["train", "--resume", "run", *flags[:2], "--epochs", "3"]
    again = Terminal([*FEEDAX, *resume], cwd=tmp_path)
    assert set(re.findall(r"[Ee]poch (\d+) ", again.text)) == {"2"}


def test_waiting_for_data_is_shown_and_said_once(feedax, tmp_path, monkeypatch):
    (tmp_path / "slow.py").write_text(
        "import time, numpy as np\n"
        "class Slow:\n"
        "    targets = np.arange(6) % 2\n"
        "    def __len__(self): return 6\n"
        "    def __getitem__(self, i):\n"
        "        time.sleep(0.2)\n"
        "        return np.ones(4, np.float32), i % 2\n"
        "def make(): return Slow()\n"
    )
    flags = ("--dataset", "slow:make", "--batch-size", 2, "--epochs", 2, "--hidden", 4)
    done = feedax("train", *flags, "--out", "run")
    assert done.returncode == 0, done.stderr
    epochs = [line for line in done.stdout.splitlines() if line.startswith("Epoch")]
    for epoch, line in enumerate(epochs):
        shown = rf"Epoch {epoch} in \d+\.\d\d sec, \d+\.\d\d of them waiting for data"
        assert re.fullmatch(shown, line), line
    (advice,) = [line for line in done.stderr.splitlines() if "wait for data" in line]
    assert advice.startswith("feedax train: fit: training should wait for data less than 20% of ")
    assert "; give --num-workers 2 or more, or --cache" in advice
    row = RunFolder.open("run").rows()[1]
    assert {"wait_seconds", "load_seconds", "transfer_seconds", "start_seconds"} < set(row)
    log = logging.getLogger("feedax")
    assert (log.handlers, log.propagate, log.level) == ([], True, logging.NOTSET)


def test_the_configuration_is_json_for_everyone(trained):
    text = (trained[0] / "config.json").read_text()
    assert json.loads(text)["format"] == 1
    assert "NaN" not in text

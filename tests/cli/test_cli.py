"""The command line as a person meets it: real processes, exact sentences, exit codes."""

import os
import subprocess
import sys

import pytest

FEEDAX = [sys.executable, "-W", "error::SyntaxWarning", "-m", "feedax"]


def feedax(*arguments, cwd, **more):
    command = [*FEEDAX, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, **more)


def named(value):
    """The id of a test case: its arguments."""
    return " ".join(value) if isinstance(value, list) else ""


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_command(tmp_path, arguments):
    done = feedax(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: feedax COMMAND ...\n\nPyTorch picks the examples.")
    for command in ("train", "evaluate", "predict", "plan"):
        assert f"\n  {command} " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_version(tmp_path):
    import feedax as package

    done = feedax("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"feedax {package.__version__}\n")


@pytest.mark.parametrize("command", ["train", "sweep", "evaluate", "predict", "plan"])
def test_help_of_a_command_is_quick_and_has_examples(tmp_path, command):
    code = (
        f"import sys; from feedax.cli import main\n"
        f"try: main(['{command}', '--help'])\n"
        f"finally: print(sorted({{'jax', 'torch', 'matplotlib', 'rich', 'numpy', 'PIL'}} & "
        f"set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"usage: feedax {command} [-h]" in done.stdout
    assert f"examples:\n  feedax {command}" in done.stdout
    assert done.stdout.endswith("[]\n")  # what takes seconds to import was not


USAGE = [
    (
        ["trian"],
        "feedax: the command must be one of train, sweep, evaluate, predict, report, show, plan, "
        "not 'trian'; did you mean train?",
    ),
    (
        ["xyz"],
        "feedax: the command must be one of train, sweep, evaluate, predict, report, show, plan, "
        "not 'xyz'; see feedax --help",
    ),
    (["train", "--shufle"], "feedax train: there is no flag --shufle; did you mean --shuffle?"),
    (["train", "--zzz=3"], "feedax train: there is no flag --zzz; see feedax train --help"),
    *(
        (
            ["train", *words.split()],
            f"feedax train: there is no flag {words.split()[0]}; did you mean {meant}?",
        )
        for words, meant in {
            "--lr 0.1": "--learning-rate",
            "--bs 32": "--batch-size",
            "--wd 0.1": "--weight-decay",
            "-e 3": "--epochs",
            "--n_epochs 3": "--epochs",
            "--hidden-sizes 10": "--hidden",
            "--workers 2": "--num-workers",
            "--momentum 0.9": "--optimizer momentum",
            "--no-shufle": "--no-shuffle",
            "--LR 0.1": "--learning-rate",
        }.items()
    ),
    *(
        (["train", word], f"feedax train: there is no flag {word}; see feedax train --help")
        for word in ("--test", "--activation", "--eps", "--checkpoint", "--model", "-v")
    ),
    (
        ["train", "--", "--epochs", "3"],
        "feedax train: there is no flag --epochs; leave out the -- before it",
    ),
    (
        ["train", "--hidden", ","],
        "feedax train: --hidden must be whole numbers, and it is ,; see feedax train --help",
    ),
    (
        ["train", "--device", "gpu"],
        "feedax train: there is no flag --device; JAX uses a GPU where it finds one, unless "
        "JAX_PLATFORMS=cpu is set",
    ),
    (
        ["evaluate", "RUN", "--steps", "3"],
        "feedax evaluate: there is no flag --steps, which belongs to feedax train and sweep; leave "
        "it out",
    ),
    (
        ["evaluate", "RUN", "--runs", "r"],
        "feedax evaluate: there is no flag --runs; see feedax evaluate --help",
    ),
    (
        ["train", "--seeds", "3"],
        "feedax train: there is no flag --seeds, which belongs to feedax sweep; leave it out",
    ),
    (
        ["plan", "--lr", "3"],
        "feedax plan: there is no flag --lr; --learning-rate belongs to feedax train and sweep; "
        "leave it out",
    ),
    (
        ["predict", "RUN", "a.png", "--initial-params", "r"],
        "feedax predict: there is no flag --initial-params, which belongs to feedax train; leave "
        "it out",
    ),
    *(
        (
            [command, word],
            f"feedax {command}: there is nothing to do with {word!r}; did you mean {meant}?",
        )
        for command, word, meant in (
            ("plan", "mnist", "--dataset mnist"),
            ("train", "npz:digits.npz", "--dataset npz:digits.npz"),
            ("train", "adam", "--optimizer adam"),
        )
    ),
    (
        ["train", "tutorial"],  # three flags have it
        "feedax train: there is nothing to do with 'tutorial'; see feedax train --help",
    ),
    (["train", "x"], "feedax train: there is nothing to do with 'x'; see feedax train --help"),
    (["train", "--batch-size", "0"], "feedax train: --batch-size must be at least 1, and it is 0"),
    (["plan", "--batch-size", "0"], "feedax plan: --batch-size must be at least 1, and it is 0"),
    (["train", "--epochs", "-1"], "feedax train: --epochs must be at least 1, and it is -1"),
    (["train", "--epochs", "0"], "feedax train: --epochs must be at least 1, and it is 0"),
    (
        ["train", "--num-workers", "-1"],
        "feedax train: --num-workers must be at least 0, and it is -1",
    ),
    (["train", "--seed", "-1"], "feedax train: --seed must be at least 0, and it is -1"),
    (
        ["train", "--seed", "4294967296"],
        "feedax train: --seed must be below 2**32, and it is 4294967296",
    ),
    (
        ["train", "--learning-rate", "nan"],
        "feedax train: --learning-rate must be a finite number above 0, and it is nan",
    ),
    (
        ["train", "--learning-rate", "fast"],
        "feedax train: --learning-rate must be a number, and it is 'fast'; see feedax train --help",
    ),
    (
        ["train", "--epochs", "many"],
        "feedax train: --epochs must be a whole number, and it is 'many'; see feedax train --help",
    ),
    (
        ["train", "--epochs"],
        "feedax train: --epochs must be followed by its value; see feedax train --help",
    ),
    (
        ["train", "--optimizer", "sdg"],
        "feedax train: --optimizer must be one of sgd, momentum, nesterov, rmsprop, adagrad, adam, "
        "adamw, nadam, radam, adabelief, lion, and it is 'sdg'; see feedax train --help",
    ),
    (
        ["train", "--layers"],
        "feedax train: --layers must have at least two sizes, input and output, and it has 0; give "
        "for example --layers 784 512 512 10",
    ),
    (
        ["train", "--layers", "784", "0", "10"],
        "feedax train: every size of --layers must be at least 1, and it is 0",
    ),
    (
        ["train", "--layers", "784", "ten"],
        "feedax train: --layers must be whole numbers, and it is 784, ten; see feedax train --help",
    ),
    *(
        (
            [command, *words.split()],
            f"feedax {command}: {meant.split()[0]} must have spaces between its values, and it is "
            f"{value}; give {meant}",
        )
        for command, words, value, meant in (
            ("train", "--hidden 10,20", "10,20", "--hidden 10 20"),
            ("train", "--layers=[784,10]", "[784,10]", "--layers 784 10"),
            ("train", "--hidden 10, 20", "10, 20", "--hidden 10 20"),
            ("sweep", "--learning-rate 0.1,0.2", "0.1,0.2", "--learning-rate 0.1 0.2"),
            ("sweep", "--optimizer adam,lion", "adam,lion", "--optimizer adam lion"),
        )
    ),
    (
        ["train", "--hidden", "5", "--layers", "784", "10"],
        "feedax train: --hidden and --layers must not be given together: --layers has the hidden "
        "sizes too; leave one out",
    ),
    (
        ["train", "--out", "a", "--name", "b"],
        "feedax train: --out and --name must not be given together; --out has the name",
    ),
    (
        ["train", "--name", "a/b"],
        "feedax train: --name must be part of a file name, and it is 'a/b'",
    ),
    (
        ["train", "--dataset", ""],
        "feedax train: --dataset must be a name, and it is empty; leave it out for mnist",
    ),
    (
        ["train", "--dataset", "mnits"],
        "feedax train: datasets: the dataset must be one of mnist, fashion_mnist, kmnist, emnist, "
        "emnist:SPLIT, qmnist, cifar10, cifar100, svhn, imagefolder:DIR, npz:FILE, "
        "package.module:factory, and it is 'mnits'; did you mean 'mnist'?",
    ),
    (
        ["train", "--epochs", "2", "--steps", "9"],
        "feedax train: --epochs and --steps must not be given together; leave one out",
    ),
    (["train", "--steps", "0"], "feedax train: --steps must be at least 1, and it is 0"),
    (
        ["train", "--decay-rate", "-1"],
        "feedax train: --decay-rate must be a finite number above 0, and it is -1.0",
    ),
    (
        ["train", "--clip-norm", "0"],
        "feedax train: --clip-norm must be a finite number above 0, and it is 0.0",
    ),
    (
        ["train", "--weight-decay", "inf"],
        "feedax train: --weight-decay must be a finite number from 0 on, and it is inf",
    ),
    (
        ["train", "--warmup-steps", "-1"],
        "feedax train: --warmup-steps must be at least 0, and it is -1",
    ),
    (
        ["train", "--warmup-fraction", "1"],
        "feedax train: --warmup-fraction must be a fraction from 0 to below 1, and it is 1.0",
    ),
    (
        ["train", "--warmup-fraction", "0.1", "--warmup-steps", "2"],
        "feedax train: --warmup-steps and --warmup-fraction must not be given together; leave one "
        "out",
    ),
    (
        ["train", "--warmup-fraction", "0.05", "--schedule", "one_cycle"],
        "feedax train: --warmup-fraction must be 0 with --schedule one_cycle, which has a warm-up "
        "of its own, and it is 0.05; set it to 0, or choose another schedule",
    ),
    (
        ["train", "--preset", "moden"],
        "feedax train: --preset must be one of tutorial, modern, best, and it is 'moden'; see "
        "feedax train --help",
    ),
    (
        ["train", "--preset"],
        "feedax train: --preset must be followed by its value; see feedax train --help",
    ),
    (
        ["train", "--dropout", "1"],
        "feedax train: --dropout must be a fraction from 0 to below 1, and it is 1.0",
    ),
    (
        ["train", "--dropout", "-0.1"],
        "feedax train: --dropout must be a fraction from 0 to below 1, and it is -0.1",
    ),
    (
        ["train", "--initialisation", "xavier"],
        "feedax train: --initialisation must be one of tutorial, he, and it is 'xavier'; see "
        "feedax train --help",
    ),
    (
        ["train", "--loss", "cross_entropy", "--label-smoothing", "1"],
        "feedax train: --label-smoothing must be a fraction from 0 to below 1, and it is 1.0",
    ),
    (
        ["train", "--label-smoothing", "0.1"],
        "feedax train: --label-smoothing is for --loss cross_entropy, and the loss is tutorial; "
        "set it to 0, or change the loss",
    ),
    *(
        (
            ["train", flag, value],
            f"feedax train: {flag} must be a finite number from 0 on, and it is {float(value)}",
        )
        for flag, value in (
            ("--rotation", "-1"),
            ("--rotation", "inf"),
            ("--scaling", "nan"),
            ("--shear", "-0.5"),
            ("--translation", "-2"),
            ("--elastic-alpha", "inf"),
            ("--brightness", "-1"),
            ("--contrast", "nan"),
            ("--mixup", "-0.2"),
        )
    ),
    (
        ["train", "--elastic-sigma", "0"],
        "feedax train: --elastic-sigma must be a finite number above 0, and it is 0.0",
    ),
    (
        ["train", "--crop-padding", "-1"],
        "feedax train: --crop-padding must be at least 0, and it is -1",
    ),
    (["train", "--cutout", "-1"], "feedax train: --cutout must be at least 0, and it is -1"),
    (
        ["train", "--cutout", "29"],
        "feedax train: --cutout must be no larger than the images of 28 x 28 pixels, and it is 29",
    ),
    (
        ["train", "--decay-epochs", "2"],
        "feedax train: --decay-epochs is for --schedule step, and the schedule is constant; leave "
        "it out",
    ),
    (
        ["train", "--validation", "1"],
        "feedax train: --validation must be a fraction from 0 to below 1, and it is 1.0",
    ),
    (
        ["train", "--validation", "nan"],
        "feedax train: --validation must be a fraction from 0 to below 1, and it is nan",
    ),
    (
        ["train", "--best", "test_accuracy"],
        "feedax train: --best must not be chosen by the test set, and it is test_accuracy; give "
        "--validation 0.1 and --best validation_accuracy",
    ),
    (["train", "--patience", "0"], "feedax train: --patience must be at least 1, and it is 0"),
    (
        ["train", "--precision", "float16"],
        "feedax train: --precision must be one of float32, bfloat16, and it is 'float16'; see "
        "feedax train --help",
    ),
    (
        ["train", "--checkpoint-every-steps", "0"],
        "feedax train: --checkpoint-every-steps must be at least 1, and it is 0",
    ),
    (
        ["train", "--checkpoint-every-seconds", "0"],
        "feedax train: --checkpoint-every-seconds must be a finite number above 0, and it is 0.0",
    ),
    (
        ["train", "--checkpoint-every-epochs", "0"],
        "feedax train: --checkpoint-every-epochs must be at least 1, and it is 0",
    ),
    (
        ["train", "--keep-checkpoints", "0"],
        "feedax train: --keep-checkpoints must be at least 1, and it is 0",
    ),
    (["train", "--devices", "0"], "feedax train: --devices must be at least 1, and it is 0"),
    (
        ["train", "--processes", "2"],
        "feedax train: --coordinator, --processes and --process must be given together; add those "
        "that are missing",
    ),
    (["evaluate"], "feedax evaluate: RUN must be given; see feedax evaluate --help"),
    (["predict"], "feedax predict: RUN must be given; see feedax predict --help"),
    (
        ["predict", "run"],
        "feedax predict: at least one IMAGE must be given after RUN; see feedax predict --help",
    ),
]


@pytest.mark.parametrize(("arguments", "sentence"), USAGE, ids=named)
def test_a_wrong_command_line_is_one_sentence(arguments, sentence, capsys):
    from feedax.cli import main

    assert main(arguments) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"{sentence}\n")


def test_a_wrong_command_line_exits_with_2(tmp_path):
    done = feedax("train", "--batch-size", "0", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "feedax train: --batch-size must be at least 1, and it is 0\n"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"]])
def test_a_closed_pipe_is_no_error(tmp_path, arguments):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [*FEEDAX, *arguments], cwd=tmp_path, stdout=closed, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("redirected", "argument", "code", "heard"),
    [
        (">&-", "--version", 0, 0),
        ("2>&-", "--version", 0, 1),
        (">&- 2>&- <&-", "--help", 0, 0),
        ("2>&-", "trian", 2, 0),
        ("2>/dev/full", "trian", 2, 0),
        (">/dev/full", "--version", 1, 1),
    ],
)
def test_closed_outputs_change_nothing_but_what_is_heard(redirected, argument, code, heard):
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirected}', "sh", *FEEDAX, argument],
        capture_output=True, text=True,
    )  # fmt: skip
    said = (done.stdout + done.stderr).splitlines()
    assert (done.returncode, len(said)) == (code, heard), said


@pytest.mark.parametrize("value", ["x" * 100_000, "[" * 100_000, "it's " * 20_000])
@pytest.mark.parametrize(
    "arguments", [["{}"], ["train", "--{}"], ["train", "--epochs", "{}"], ["evaluate", "{}"]]
)
def test_a_long_value_is_repeated_by_its_ends(capsys, arguments, value):
    from feedax.cli import main

    assert main([argument.format(value) for argument in arguments]) in (1, 2)
    said = capsys.readouterr().err
    assert "..." in said
    assert len(said) < 420
    assert said.count("\n") == 1


def test_a_message_is_one_line_without_control_characters(capsys):
    from feedax.cli import main

    assert main(["evaluate", "a\nb\x1b[31m\udc80"]) == 1
    assert capsys.readouterr().err == (
        "feedax evaluate: run folder: a b\\x1b[31m\\udc80 must be a folder that feedax train made, "
        "and it is not there; look under runs/\n"
    )


def test_flags_come_back_from_their_command_line():
    from feedax.cli.flags import TrainFlags
    from feedax.cli.parse import command_line, parse

    text = (
        "--dataset npz:a.npz --root /x --batch-size 5 --shuffle --drop-last --num-workers 1 "
        "--no-cache --plan streamed --validation 0.2 --seed 3 --hidden 7 8 --initial-params runs/a "
        "--initialisation he --scale-pixels --dropout 0.25 --preset best --epochs 2 "
        "--loss cross_entropy --label-smoothing 0.1 --precision bfloat16 --rotation 5.0 "
        "--scaling 0.2 --shear 0.3 --translation 1.5 --elastic-alpha 8.0 --elastic-sigma 5.0 "
        "--crop-padding 2 --flip --cutout 3 --brightness 0.4 --contrast 0.5 --mixup 0.6 "
        "--optimizer adam --learning-rate 0.001 --schedule step --warmup-steps 5 "
        "--warmup-fraction 0.0 --decay-epochs 6 --decay-rate 0.5 --weight-decay 0.01 "
        "--clip-norm 1.5 --best validation_loss --patience 4 --resume runs/r "
        "--checkpoint-every-steps 7 --checkpoint-every-seconds 1e-07 --checkpoint-every-epochs 8 "
        "--keep-checkpoints 9 --devices 2 --coordinator h:1 --processes 3 --process 1 --out runs/b "
        "--no-report --log tensorboard mlflow"
    )
    words = text.split()
    flags = parse(TrainFlags, words, "train", "")
    assert command_line(flags) == words
    # Defaults are written down: another version may have others.
    assert "--no-shuffle --drop-last" not in command_line(TrainFlags())
    for flags in (TrainFlags(), parse(TrainFlags, ["--hidden"], "train", "")):
        assert parse(TrainFlags, command_line(flags), "train", "") == flags


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["evaluate", "nothing"],
            "feedax evaluate: run folder: nothing must be a folder that feedax train made, and it "
            "is not there; look under runs/",
        ),
        (
            ["predict", ".", "a.png"],
            "feedax predict: run folder: . must be a folder that feedax train made, and it has no "
            "config.json; look under runs/",
        ),
        (
            ["train", "--initial-params", "nothing"],
            "feedax train: run folder: {here}/nothing must be a folder that feedax train made, and "
            "it is not there; look under runs/",
        ),
        (
            ["train", "--resume", "nothing"],
            "feedax train: run folder: nothing must be a folder that feedax train made, and it is "
            "not there; look under runs/",
        ),
        (
            ["train", "--resume", "."],
            "feedax train: run folder: . must be a folder that feedax train made, and it has no "
            "config.json; look under runs/",
        ),
        (
            ["train", "--devices", "2"],
            "feedax train: fit: --devices N must be from 1 to the 1 that JAX has here, and it is "
            "2; give --devices 1, or JAX more (JAX_NUM_CPU_DEVICES)",
        ),
        (
            ["train", "--patience", "2"],
            "feedax train: fit: --patience N must be 1 or more epochs in which --best COLUMN gets "
            "no better, and patience is 2 and best is None; give --validation 0.1, or --best loss",
        ),
        (
            ["train", "--best", "validation_loss"],
            "feedax train: fit: --best COLUMN must name a column of the rows, of one of the sets "
            "['test', 'train'], and it is 'validation_loss'; give --validation 0.1, or another "
            "--best",
        ),
        (
            ["train", "--layers", "100", "10"],
            "feedax train: the network: the first layer must have the 784 values of one example of "
            "mnist, and it has 100; start --layers with 784, or give --hidden sizes only",
        ),
        (
            ["train", "--layers", "784", "9"],
            "feedax train: the network: the last layer must have an output for each of the 10 "
            "classes of mnist, and it has 9; end --layers with 10, or give --hidden sizes only",
        ),
        (
            ["train", "--out", "file"],
            "feedax train: run folder: file must be a folder, and it is a file; choose another one "
            "with --out",
        ),
        (
            ["train", "--out", "file/run"],
            "feedax train: run folder: file/run must be writable, and the system says 'Not a "
            "directory'; choose another one with --out",
        ),
    ],
    ids=named,
)
def test_a_run_that_cannot_be_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, sentence):
    from feedax.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"{sentence.replace('{here}', str(tmp_path))}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # refused before any folder


def test_an_error_of_the_users_code_is_one_line_without_a_traceback(tmp_path, monkeypatch, capsys):
    from feedax.cli import main

    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_broken_data.py").write_text(
        "class Data:\n"
        "    def __len__(self): return 3\n"
        "    def __getitem__(self, i): raise RuntimeError('the disk\\nis gone')\n"
    )
    arguments = ["train", "--dataset", "my_broken_data:Data", "--out", str(tmp_path / "run")]
    assert main(arguments) == 1
    assert capsys.readouterr().err == (
        "feedax train: RuntimeError: the disk is gone (FEEDAX_TRACEBACK=1 feedax ... shows where)\n"
    )
    monkeypatch.setenv("FEEDAX_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="the disk\nis gone"):
        main(arguments)


def test_plan_says_the_plan_in_words(capsys):
    from feedax.cli import main

    assert main(["plan", "--batch-size", "100"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert lines[0::2] == [
        "Training set: 60,000 examples in 600 batches",
        "Test set: 10,000 examples in 100 batches",
    ]
    assert all(line.startswith("  resident: ") for line in lines[1::2])

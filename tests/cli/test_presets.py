"""`feedax train --preset`: what a preset sets, what overrides it, and what is written down."""

import re
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from feedax.cli import main
from feedax.cli.flags import PRESET_FLAGS as PRESETS
from feedax.cli.flags import TrainFlags, complete, defaults, preset_flags, recorded_flags
from feedax.cli.parse import command_line, fields_of, flag_values, parse
from feedax.presets import DESCRIPTIONS, WEIGHT_DECAY
from feedax.report.run_folder import RunFolder

TUTORIAL, MODERN = PRESETS["tutorial"], PRESETS["modern"]


def parsed(words):
    """The flags of a command line."""
    return parse(TrainFlags, words.split(), "train", "", defaults(words.split()))


def help_of(words, capsys):
    """What --help prints, without its frames and in single spaces."""
    with pytest.raises(SystemExit) as stop:
        main(["train", *words.split(), "--help"])
    assert stop.value.code == 0
    return " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())


def changed(flags, group, **values):
    return replace(flags, **{group: replace(getattr(flags, group), **values)})


def test_without_a_preset_it_is_the_tutorial():
    assert parsed("") == parsed("--preset tutorial") == TUTORIAL
    assert preset_flags("tutorial") == []
    plain = changed(changed(TrainFlags(), "model", hidden=(512, 512)), "training", epochs=8)
    assert plain == TUTORIAL


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_tutorial_with_the_flags_that_the_help_says(name, capsys):
    assert parsed(f"--preset {name}") == PRESETS[name] == parsed(f"--preset={name}")
    assert PRESETS[name].training.preset == name
    words = preset_flags(name)
    flags = parse(TrainFlags, words, "train", "", TUTORIAL)
    assert changed(flags, "training", preset=name) == PRESETS[name]
    shown = help_of("", capsys)
    assert f"--preset {name}: {DESCRIPTIONS[name]} {' '.join(words)}".strip() in shown


def test_the_help_of_modern_shows_its_values_as_the_defaults(capsys):
    shown = help_of("--preset modern", capsys)
    for flag, value in flag_values(MODERN).items():
        if value is not None:
            said = " ".join(map(str, value)) or "none" if isinstance(value, tuple) else value
            # The first default after the flag's own entry.
            entry = re.split(rf" {flag}(?:, --no-\S+)? (?=[A-Z{{])| {flag}, ", shown)[1]
            assert re.findall(r"\(default: (.*?)\)", entry)[0] == str(said), flag
    assert "input and output come from the data. (default: 512 512)" in help_of("", capsys)


@pytest.mark.parametrize(
    ("words", "group", "values"),
    [
        ("--epochs 3", "training", {"epochs": 3}),
        ("--steps 9", "training", {"epochs": None, "steps": 9}),
        ("--no-shuffle", "data", {"shuffle": False}),
        ("--no-scale-pixels", "model", {"scale_pixels": False}),
        ("--hidden 7", "model", {"hidden": (7,)}),
        ("--layers 64 10", "model", {"hidden": None, "layers": (64, 10)}),
        ("--initial-params a", "model", {"hidden": None, "initial_params": Path("a")}),
        ("--warmup-steps 4", "optimizer", {"warmup_fraction": 0.0, "warmup_steps": 4}),
        ("--rotation 0", "augment", {"rotation": 0.0}),
        ("--weight-decay 0", "optimizer", {"weight_decay": 0.0}),
        ("--loss tutorial", "training", {"loss": "tutorial", "label_smoothing": 0.0}),
        ("--loss cross_entropy", "training", {}),
        ("--schedule one_cycle", "optimizer", {"schedule": "one_cycle", "warmup_fraction": 0.0}),
    ],
)
def test_flags_override_the_preset_wherever_it_stands(words, group, values):
    expected = changed(MODERN, group, **values)
    assert parsed(f"--preset modern {words}") == parsed(f"{words} --preset modern") == expected


def test_the_last_preset_counts():
    assert parsed("--preset best --preset modern") == MODERN


@pytest.mark.parametrize("name", PRESETS)
def test_a_command_line_gives_the_same_flags_whatever_the_preset_is_by_then(name, monkeypatch):
    """Also read as a person's own, and with another preset under the name."""
    for words in ("", "--steps 5", "--layers 64 9 10 --no-shuffle", "--warmup-steps 2 --seed 1"):
        flags = complete(parsed(f"--preset {name} {words}"))  # as they are recorded
        line = command_line(flags)
        assert parse(TrainFlags, line, "train", "") == flags
        for other in PRESETS.values():
            with monkeypatch.context() as patch:
                patch.setitem(PRESETS, name, changed(other, "training", preset=name))
                assert parsed(" ".join(line)) == flags


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_nothing_that_a_flag_cannot_take_back(name):
    """A flag that need not be given has no word for that, so no preset may give it."""
    given = {
        flag
        for flag, value in flag_values(PRESETS[name]).items()
        if flag_values(TrainFlags())[flag] is None and value is not None
    }
    assert given <= {"--hidden", "--epochs", "--weight-decay"}  # each can be set to any value


def test_modern_learns_and_its_run_says_what_it_was(on_digits):
    done = on_digits("train --preset modern --steps 60 --batch-size 100 --seed 2 --out run")
    assert done.returncode == 0, done.stderr
    folder = RunFolder.open("run")
    assert folder.rows()[-1]["test_accuracy"] > 0.7
    config = folder.config
    assert config["layers"] == [64, 512, 512, 10]
    flags = recorded_flags(folder)
    assert flags.training.preset == "modern"
    assert (flags.training.epochs, flags.training.steps, flags.data.batch_size) == (None, 60, 100)
    assert flags.augment == MODERN.augment
    assert flags.optimizer == MODERN.optimizer
    plain = {group: set(values) for group, values in config["flags"].items()}
    groups = {group: {one.name for one in fields(getattr(flags, group))} for group in asdict(flags)}
    assert plain == groups
    named = {word for word in config["arguments"] if word.startswith("--")}
    off = {name.replace("--no-", "--", 1) for name in named}
    missing = {name for name, _, _ in fields_of(TrainFlags)} - off
    assert all(flag_values(flags)[name] is None for name in missing)


@pytest.mark.slow
def test_modern_is_the_run_of_all_its_flags(on_digits):
    assert on_digits("train --preset modern --steps 60 --batch-size 100 --out run").returncode == 0
    words = RunFolder.open("run").config["arguments"]
    at = words.index("--preset")
    words = [*words[:at], *words[at + 2 :]]
    words[words.index("run")] = "again"
    assert on_digits(" ".join(["train", *words]), start=False).returncode == 0
    ours, theirs = (Path(name, "params.safetensors").read_bytes() for name in ("run", "again"))
    assert ours == theirs


@pytest.mark.usefixtures("others_mix")
def test_the_flags_decay_weights_as_the_optimizers_do():
    """The command line says adamw's weight decay aloud."""
    import jax.numpy as jnp

    from feedax.train.optimizers import OptimizerName, build_optimizer

    def decayed(optimizer):
        params, grads = jnp.array([100.0]), jnp.array([1.0])
        return optimizer.update(grads, optimizer.init(params), params)[0].tolist()

    for name in OptimizerName.__args__:
        said = build_optimizer(name, weight_decay=WEIGHT_DECAY.get(name, 0.0))
        assert decayed(build_optimizer(name)) == decayed(said)

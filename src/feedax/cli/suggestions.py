"""What a person may have meant by words that a command does not know."""

import difflib
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from feedax.cli.flags import DATASETS
from feedax.cli.parse import UnknownWordsError, fields_of
from feedax.cli.sweep_flags import REFUSED

SYNONYMS = {
    name: meant
    for meant, names in {
        "--dataset": "--data",
        "--root": "--data-dir --data-root --root-dir",
        "--batch-size": "-b --bs --batch --train-batch-size",
        "--num-workers": "-j",
        "--validation": "--val --valid --val-split --val-fraction",
        "--seed": "--random-seed",
        "--hidden": "--hidden-size --hidden-sizes",
        "--epochs": "-e",
        "--steps": "--iterations --iters --max-iters",
        "--precision": "--dtype",
        "--precision bfloat16": "--amp --bf16",
        "--optimizer": "--opt",
        "--optimizer momentum": "--momentum",
        "--learning-rate": "--lr --step-size",
        "--decay-rate": "--gamma",
        "--weight-decay": "--wd --l2",
        "--clip-norm": "--clip --grad-clip --gradient-clip-val --max-grad-norm",
        "--patience": "--early-stopping",
        "--devices": "--gpus --num-gpus",
        "--out": "-o --output --output-dir",
        "--seeds": "--num-seeds",
    }.items()
    for name in names.split()
}
"""What other programs call the same, and the flag here."""

DEVICE = ("--device", "--accelerator", "--gpu", "--cuda", "--use-cuda", "--no-cuda", "--cpu")
"""How other programs let one choose a device, which JAX does here."""


def remedy(unknown: UnknownWordsError, command: str, kinds: Mapping[str, Any]) -> str:
    """The end of the sentence that refuses words: what is to be done.

    Args:
        unknown: the refusal.
        command: that was given them.
        kinds: the dataclass of flags of each command.
    """
    known = names_of(command, kinds)
    near = None
    if not unknown.is_flag:
        near = _flag_of(unknown.word, kinds[command])
    elif (name := unknown.name.replace("_", "-").lower()) in DEVICE:
        return "; JAX uses a GPU where it finds one, unless JAX_PLATFORMS=cpu is set"
    else:
        meant = SYNONYMS.get(name, name)
        flag = meant.partition(" ")[0]
        owners = [other for other in kinds if flag in names_of(other, kinds)]
        if command in owners and meant == unknown.name:
            return "; leave out the -- before it"  # which makes words of flags
        if command in owners:
            near = meant
        elif owners:
            listed = " and ".join(filter(None, [", ".join(owners[:-1]), owners[-1]]))
            belongs = ", which belongs" if meant == name else f"; {meant} belongs"
            return f"{belongs} to feedax {listed}; leave it out"
        else:
            near = _nearest(name, known)
    return f"; did you mean {near}?" if near else f"; see feedax {command} --help"


def names_of(command: str, kinds: Mapping[str, Any]) -> list[str]:
    """Every flag of a command, and how those are switched off that can be."""
    found = ["--help"]
    for name, hint, _ in fields_of(kinds[command]):
        if command != "sweep" or name not in REFUSED:
            found += [name, name.replace("--", "--no-", 1)] if hint is bool else [name]
    return found


def _nearest(name: str, known: list[str]) -> str | None:
    """The flag that a mistyped one is nearest to, or None where none is near."""
    word = name.removeprefix("--")  # what all have in common makes none nearer

    def nearness(other: str) -> float:
        ratio = difflib.SequenceMatcher(None, word, other).ratio()
        are_kin = word[:4] == other[:4] or set(word.split("-")) & set(other.split("-"))
        return ratio if ratio >= (0.7 if are_kin else 0.8) else 0.0

    near = max((one.removeprefix("--") for one in known), key=nearness)
    return f"--{near}" if nearness(near) else None


def _flag_of(word: str, kind: Any) -> str | None:
    """The one flag that has a word among its choices, with the word."""
    datasets = [form.partition(":")[0] for form in DATASETS.replace(",", "").split()]
    found = []
    for name, hint, _ in fields_of(kind):
        is_dataset = name == "--dataset" and word.partition(":")[0].replace("-", "_") in datasets
        choices = get_args(hint) if get_origin(hint) is Literal else ()
        found += [f"{name} {word}"] if is_dataset or word in choices else []
    return found[0] if len(found) == 1 else None

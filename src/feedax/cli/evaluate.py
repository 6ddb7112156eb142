"""``feedax evaluate``."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from feedax.cli.flags import DataFlags, EvaluateFlags
from feedax.cli.parse import parse
from feedax.errors import RunFolderError

if TYPE_CHECKING:
    from feedax.report.run_folder import RunFolder

DESCRIPTION = """\
Loss and accuracy of a trained run on its training and test set.

examples:
  feedax evaluate runs/20260131-142501-mnist
  feedax evaluate runs/20260131-142501-mnist --dataset qmnist"""


def run(arguments: Sequence[str]) -> int:
    """Evaluate, and return the exit code."""
    flags = parse(EvaluateFlags, arguments, "evaluate", DESCRIPTION)

    from feedax.cli.compilation_cache import use_compilation_cache
    from feedax.cli.examples import TITLES, Examples
    from feedax.cli.network import LOSSES, check_layers, load_params, predict
    from feedax.cli.progress import accuracy_lines
    from feedax.report.run_folder import RunFolder
    from feedax.train import evaluate

    use_compilation_cache()
    folder = RunFolder.open(flags.run)
    layers = folder.setting("layers")
    params = load_params(folder, layers)
    examples = Examples.open(_data_flags(folder, flags))
    check_layers(layers, examples)
    for name, loader in examples.loaders().items():
        scores = evaluate(
            predict,
            params,
            loader,
            loss=LOSSES[folder.setting("loss")],
            precision=folder.setting("flags").get("training", {}).get("precision"),
        )
        print(*accuracy_lines({f"{name}_accuracy": scores["accuracy"]}))
        print(f"{TITLES[name]} set loss {scores['loss']}", flush=True)
    return 0


def _data_flags(folder: "RunFolder", flags: EvaluateFlags) -> DataFlags:
    """The data of a run, or what the flags name instead."""
    from feedax.datasets import is_code

    recorded = DataFlags(**folder.setting("flags")["data"])
    if flags.dataset is None and is_code(recorded.dataset):
        raise RunFolderError(
            f"run folder: code must be named by you, not by a file, and the dataset of "
            f"{folder.path} is made by {recorded.dataset}; add --dataset {recorded.dataset}"
        )
    root = None if recorded.root is None else Path(recorded.root)
    if flags.dataset is not None:
        recorded, root = dataclasses.replace(recorded, dataset=flags.dataset), None
    return dataclasses.replace(recorded, root=flags.root or root, shuffle=False)

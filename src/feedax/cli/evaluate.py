"""``feedax evaluate``."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from feedax.cli.flag_words import flag_values
from feedax.cli.flags import DataFlags
from feedax.cli.parse import parse
from feedax.cli.recorded import MANY_PROCESSES, recorded_flags, refuse_unnamed

arg = tyro.conf.arg

DESCRIPTION = """\
Loss and accuracy of a trained run on its training and test set.

examples:
  feedax evaluate runs/20260131-142501-mnist
  feedax evaluate runs/20260131-142501-mnist --dataset qmnist"""


@dataclass(frozen=True)
class EvaluateFlags:
    run: Annotated[tyro.conf.Positional[Path], arg(metavar="RUN")]
    """The folder of a run."""
    dataset: Annotated[
        str | None, arg(metavar="NAME", help_behavior_hint="(default: the run's)")
    ] = None
    """Another dataset with examples of the same size."""
    root: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: the run's)")] = (
        None
    )
    """Folder for a dataset that is downloaded or unpacked."""


def run(arguments: Sequence[str]) -> int:
    """Evaluate, and return the exit code."""
    flags = parse(EvaluateFlags, arguments, "evaluate", DESCRIPTION)

    from feedax.cli.compilation_cache import use_compilation_cache
    from feedax.cli.examples import TITLES, Examples
    from feedax.cli.network import check_layers, load_params
    from feedax.cli.progress import accuracy_lines
    from feedax.cli.recipe import evaluate_arguments
    from feedax.report.run_folder import RunFolder
    from feedax.train import evaluate

    use_compilation_cache()
    folder = RunFolder.open(flags.run)
    recorded = recorded_flags(folder)
    layers = folder.setting("layers")
    params = load_params(folder, layers)
    examples = Examples.open(_data_flags(folder.path, recorded.data, flags))
    check_layers(layers, examples)
    for name, loader in examples.loaders().items():
        scores = evaluate(params=params, batches=loader, **evaluate_arguments(recorded))
        print(*accuracy_lines({f"{name}_accuracy": scores["accuracy"]}))
        print(f"{TITLES[name]} set loss {scores['loss']}", flush=True)
    return 0


def _data_flags(folder: Path, recorded: DataFlags, flags: EvaluateFlags) -> DataFlags:
    """The data of a run, or what the flags name instead."""
    # More workers give the same numbers.
    recorded = dataclasses.replace(recorded, num_workers=min(recorded.num_workers, MANY_PROCESSES))
    if flags.dataset is not None:
        recorded = dataclasses.replace(recorded, dataset=flags.dataset, root=None)
    given = [name for name, value in flag_values(flags).items() if value is not None]
    refuse_unnamed(folder, recorded, given, "feedax evaluate")
    return dataclasses.replace(recorded, root=flags.root or recorded.root, shuffle=False)

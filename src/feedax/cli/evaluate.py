"""``feedax evaluate``."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from feedax.cli.commands import EvaluateFlags, ReportFlags
from feedax.cli.compilation_cache import use_compilation_cache
from feedax.cli.examples import TITLES, Examples
from feedax.cli.flags import DataFlags, recipe_of, recorded_flags
from feedax.cli.network import check_layers, load_params
from feedax.cli.parse import flag_values
from feedax.cli.progress import accuracy_lines
from feedax.cli.resume import MANY_PROCESSES, refuse_unnamed
from feedax.report.run_folder import RunFolder
from feedax.train import evaluate, evaluate_arguments


def run(flags: EvaluateFlags, arguments: Sequence[str]) -> int:
    """Evaluate, and return the exit code."""
    use_compilation_cache()
    folder = RunFolder.open(flags.run)
    recorded = recorded_flags(folder)
    layers = folder.setting("layers")
    params = load_params(folder, layers)
    examples = Examples.open(data_flags(folder.path, recorded.data, flags, "feedax evaluate"))
    check_layers(layers, examples, are_recorded=True)
    arguments_of_run = evaluate_arguments(recipe_of(recorded))
    for name, loader in examples.loaders().items():
        scores = evaluate(params=params, batches=loader, **arguments_of_run)
        print(*accuracy_lines({f"{name}_accuracy": scores["accuracy"]}))
        print(f"{TITLES[name]} set loss {scores['loss']}", flush=True)
    return 0


def data_flags(
    folder: Path, recorded: DataFlags, flags: EvaluateFlags | ReportFlags, who: str
) -> DataFlags:
    """The data of a run, or what the flags name instead; `who` says what is read."""
    # More workers give the same numbers.
    recorded = dataclasses.replace(recorded, num_workers=min(recorded.num_workers, MANY_PROCESSES))
    if flags.dataset is not None:
        recorded = dataclasses.replace(recorded, dataset=flags.dataset, root=None)
    given = [name for name, value in flag_values(flags).items() if value is not None]
    refuse_unnamed(folder, recorded, given, who)
    return dataclasses.replace(recorded, root=flags.root or recorded.root, shuffle=False)

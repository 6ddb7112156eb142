"""``feedax report``, and the page that `feedax train` and `feedax sweep` end with."""

import shlex
from collections.abc import Callable, Sequence, Sized
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from torch.utils.data import IterableDataset

from feedax import datasets
from feedax.cli import say
from feedax.cli.commands import ReportFlags
from feedax.cli.compilation_cache import use_compilation_cache
from feedax.cli.evaluate import data_flags
from feedax.cli.examples import Examples
from feedax.cli.flags import TrainFlags, complete, defaults, recipe_of, recorded_flags
from feedax.cli.network import check_layers, fit_arguments, network_of_sweep, trained_run
from feedax.cli.parse import changed, flag_values, read_words, spelled
from feedax.errors import FeedaxError, RunFolderError, one_line, shown
from feedax.presets import TUTORIAL, TUTORIAL_TABLE, Recipe
from feedax.random_states import random_states_restored
from feedax.report.columns import column_label
from feedax.report.comparison import ComparedRun, compared_networks, compared_runs
from feedax.report.content import RunReport
from feedax.report.images import picture
from feedax.report.model_report import model_report
from feedax.report.page import write_page
from feedax.report.run_folder import RunFolder
from feedax.report.sweep_folder import Record, SweepFolder, own_rows
from feedax.report.trained_run import TrainedRun
from feedax.train.history import Row, best_row
from feedax.train.model import accepted_kwargs
from feedax.train.recipe import CHANGES, IMAGE_HYPERPARAMS, learning_rates

AUGMENTED = 6
"""Examples that are shown as they are changed in training."""

note = partial(say, "feedax report")
"""Says what is not where the page is."""


def run(flags: ReportFlags, arguments: Sequence[str]) -> int:
    """Write the page, and return the exit code."""
    use_compilation_cache()
    if len(flags.runs) > 1:
        assert flags.out is not None
        return _several(flags.runs, flags.out)
    (path,) = flags.runs
    if _is_of_sweep(path):
        folder = SweepFolder.open(path)
        out = flags.out or folder.report_path
        best = best_record(folder.rows())
        recorded = None if best is None else flags_of(folder, best[1])
        examples = None if recorded is None else _examples(path, recorded, flags, out)
        write_sweep_report(folder, examples, out)
    else:
        trained = trained_run(path)
        out = flags.out or trained.folder.report_path
        recorded = recorded_flags(trained.folder)
        write_run_report(trained, _examples(path, recorded, flags, out), out)
    print(out)
    return 0


def _is_of_sweep(path: Path) -> bool:
    return (path / SweepFolder.metrics_name).exists()


def _several(paths: Sequence[Path], out: Path) -> int:
    runs = []
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = list(map(str, paths))
    for path, name in zip(paths, names, strict=True):
        if _is_of_sweep(path):
            raise RunFolderError(
                f"feedax report: several folders must be of runs, and {path} is of a sweep, whose "
                "page compares its networks; give it alone"
            )
        folder = RunFolder.open(path)
        recorded = recorded_flags(folder)
        rows = folder.rows()
        values = {
            flag: value for flag, value in flag_values(recorded).items() if flag not in UNCOMPARED
        }
        runs.append(ComparedRun(name, rows, best_row(rows, recorded.selection.best) or {}, values))
    title, subtitle = f"{len(runs)} runs compared", ", ".join(names)
    write_page(out, title, subtitle=subtitle, comparison=compared_runs(runs))
    print(out)
    return 0


UNCOMPARED = ("--out", "--name", "--resume", "--report", "--log")
"""Flags that say where a run is kept, and nothing about it."""


def _examples(path: Path, recorded: TrainFlags, flags: ReportFlags, out: Path) -> Examples | None:
    """The data set of a run; without one the page has no predictions.

    Raises:
        FeedaxError: it cannot be opened, and the flags name it, or there is a page already.
    """
    try:
        return Examples.open(data_flags(path, recorded.data, flags, "feedax report"))
    except FeedaxError as error:
        # A page that is there may have more.
        if flags.dataset is not None or flags.root is not None or out.exists():
            raise
        note(f"the page has no predictions, since there is no data set ({one_line(str(error))})")
        return None


def try_to_write(write: Callable[[], None], folder: RunFolder, say: Callable[[str], None]) -> bool:
    """Write a page, which no run fails for; whether it is written."""
    try:
        write()
    except Exception as error:
        reason = (
            str(error) if isinstance(error, FeedaxError) else f"{type(error).__name__}: {error}"
        )
        command = shlex.join(["feedax", "report", str(folder.path)])
        say(f"report.html could not be written ({one_line(reason)}); try again with: {command}")
        return False
    return True


def write_run_report(trained: TrainedRun, examples: Examples | None, out: Path) -> None:
    """Write the page of one run; `examples` are those of its data set."""
    folder = trained.folder
    flags = recorded_flags(folder)
    rows = folder.rows()
    report = report_of(trained, rows, flags, examples)
    write_page(out, report.title, subtitle=_subtitle(folder, flags, rows), run=report)


def write_sweep_report(folder: SweepFolder, examples: Examples | None, out: Path) -> None:
    """Write the page of a sweep, with all that there is of its most accurate network."""
    records = folder.rows()
    report, heading = None, ""
    if examples is not None and (best := best_record(records)) is not None:
        column, record = best
        flags = flags_of(folder, record)
        trained = network_of_sweep(folder, record, flags, examples)
        report = report_of(trained, own_rows(record), flags, examples)
        heading = f"{record['name']}: of the networks, that with the best {column_label(column)}"
        if column == "test_accuracy":
            heading += ", which flatters it: another test set would say less"
    write_page(
        out,
        f"{len(records)} networks on {_short_name(folder.setting('dataset'))}",
        subtitle=folder.path.name,
        run=report,
        heading=heading,
        comparison=compared_networks(records, folder.config.get("command")),
    )


def best_record(records: Sequence[Record]) -> tuple[str, Record] | None:
    """The most accurate network of a sweep, and the column that says so."""
    done = [one for one in records if one["error"] is None and one["result"]]
    for column in ("validation_accuracy", "test_accuracy", "accuracy"):
        known = [one for one in done if one["result"].get(column) is not None]
        if known:
            return column, max(known, key=lambda one: one["result"][column])
    return None


def flags_of(folder: SweepFolder, record: Record) -> TrainFlags:
    """The flags that a sweep's network was trained with."""
    for one in folder.setting("settings"):
        if one["setting"] == record["setting"]:
            return changed(read_words(TrainFlags, one["arguments"]), seed=record["seed"])
    raise RunFolderError(
        f"run folder: {folder.metrics_path} must hold networks of this sweep, and it holds one "
        f"named {shown(record['name'])}; restore it from a copy or train again"
    )


def report_of(
    trained: TrainedRun, rows: Sequence[Row], flags: TrainFlags, examples: Examples | None
) -> RunReport:
    """All that is known of a network: from its folder, and its data set if there is one."""
    recipe = recipe_of(flags)
    test: Any = None
    of_data: dict[str, Any] = {}
    if examples is not None:
        check_layers(trained.layers, examples, are_recorded=True)
        loaders = examples.loaders()
        name = next(one for one in ("test", "validation", "train") if one in loaders)
        test = loaders[name]
        of_data = {
            "set_name": name,
            "learning_rates": _learning_rates(recipe, loaders["train"], len(rows)),
            "augmented": _augmented(flags, examples, loaders["train"]),
        }
    without_decay = replace(
        recipe, epochs=TUTORIAL.epochs, weight_decay=recipe.weight_decay or None
    )
    is_tutorial = without_decay == TUTORIAL
    is_mnist = flags.data.dataset == "mnist"
    return model_report(
        {"predict": trained.predict, "params": trained.params},
        rows,
        test,
        title=f"{'-'.join(map(str, trained.layers))} on {_short_name(flags.data.dataset)}",
        class_names=trained.class_names,
        image_shape=trained.image_shape,
        dataset=trained.dataset,
        precision=recipe.precision,
        command=shlex.join(["feedax", "train", *_changed_words(flags)]),
        published=("JAX tutorial 2020", TUTORIAL_TABLE) if is_tutorial and is_mnist else None,
        facts=_facts(trained.folder, flags),
        **of_data,
    )


def _learning_rates(recipe: Recipe, loader: Sized, epochs: int) -> list[float] | None:
    try:
        return learning_rates(recipe, len(loader), epochs)
    except TypeError:  # a stream may not know its length
        return None


def _changed_words(flags: TrainFlags) -> list[str]:
    """The words of a command line that gives these flags: those that no preset has."""
    preset = flags.training.preset
    usual = flag_values(complete(defaults(["--preset", preset])))
    words = [] if preset == "tutorial" else ["--preset", preset]
    for name, value in flag_values(flags).items():
        if name not in ("--preset", *UNCOMPARED) and value != usual[name]:
            words += spelled(name, value)
    return words


def _augmented(
    flags: TrainFlags, examples: Examples, loader: Sized
) -> list[tuple[str, list[np.ndarray]]]:
    """A few examples as they are, as each change of the run changes them, and as all do."""
    asked = [name for name in CHANGES if getattr(flags.augment, name)]
    if not asked or isinstance(examples.train, IterableDataset):
        return []
    shape = examples.flattened_shape
    with random_states_restored():
        inputs = np.stack([np.asarray(examples.train[i][0]) for i in range(AUGMENTED)])
    keys = jax.random.split(jax.random.key(0), AUGMENTED)

    def program(only: TrainFlags) -> tuple[Callable[..., jax.Array], dict[str, float]]:
        arguments = fit_arguments(only, examples, loader)
        augment = arguments["augment"]
        mapped = jax.jit(jax.vmap(lambda key, x, scalars: augment(key, x, **scalars), (0, 0, None)))
        return mapped, accepted_kwargs(augment, arguments["hyperparams"])

    def without(names: Sequence[str]) -> TrainFlags:
        return changed(flags, **{name: type(getattr(flags.augment, name))() for name in names})

    # Scalars are arguments of one program, which serves them all; the others are parts of theirs.
    fixed = [name for name in asked if name not in IMAGE_HYPERPARAMS]
    shown: list[tuple[str, Any]] = [("as they are", inputs)]
    if len(fixed) < len(asked):
        run, scalars = program(without(fixed))
        for name in scalars:
            alone = {other: value if other == name else 0.0 for other, value in scalars.items()}
            shown.append((name, run(keys, inputs, alone)))
        if len(scalars) > 1 and not fixed:
            shown.append(("all together", run(keys, inputs, scalars)))
    for name in fixed:
        run, scalars = program(without([other for other in asked if other != name]))
        shown.append((name, run(keys, inputs, scalars)))
    if fixed and len(asked) > 1:
        run, scalars = program(flags)
        shown.append(("all together", run(keys, inputs, scalars)))
    return [
        (
            name.replace("_", " "),
            [one for image in images if (one := picture(image, shape)) is not None],
        )
        for name, images in shown
    ]


def _facts(folder: RunFolder, flags: TrainFlags) -> dict[str, dict[str, str]]:
    config = folder.config

    def group(name: str) -> dict[str, Any]:
        found = config.get(name)  # a file may say anything
        return found if isinstance(found, dict) else {}

    device = group("device")
    machine = {
        "device": f"{device.get('count', '?')} x {device.get('kind', '?')}",
        "usable CPUs": config.get("cpus", "?"),
        "started": config.get("started", "?"),
    }
    groups = {
        "How batches are made": {"plan": config["plan"]} if "plan" in config else {},
        "Machine": machine,
        "Versions": group("versions"),
        "Flags": {
            name: " ".join(spelled(name, value)[1:]) or str(value)
            for name, value in flag_values(flags).items()
            if value is not None and name not in UNCOMPARED
        },
    }
    return {
        title: {str(name): str(value) for name, value in some.items()}
        for title, some in groups.items()
        if some
    }


def _short_name(dataset: str) -> str:
    """The name of a data set, of a file or a folder without where it lies."""
    return Path(dataset.partition(":")[2]).name if datasets.is_path(dataset) else dataset


def _subtitle(folder: RunFolder, flags: TrainFlags, rows: Sequence[Row]) -> str:
    """The run's name, how far it came, and which epoch's parameters are kept."""
    parts = [folder.path.resolve().name]
    asked, best = flags.training.epochs, flags.selection.best
    if asked is not None and len(rows) < asked:
        parts.append(f"{len(rows)} of {asked} epochs")
    if best is not None and (row := best_row(rows, best)) is not None:
        parts.append(f"the parameters of epoch {row['epoch']}, the best by {best}")
    return ", ".join(parts)

"""``feedax sweep``."""

import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax

from feedax.cli import UsageError, and_listed, say
from feedax.cli.compilation_cache import use_compilation_cache
from feedax.cli.ending import sweep_ending
from feedax.cli.examples import Examples
from feedax.cli.flags import DataFlags, TrainFlags, recipe_of
from feedax.cli.loggers import also_logged, loggers_of, refuse_missing
from feedax.cli.network import fit_arguments, refuse_other_networks, resolve_layers
from feedax.cli.parse import flag, flag_values
from feedax.cli.progress import StopRequest, SweepProgress, tables
from feedax.cli.report import try_to_write, write_sweep_report
from feedax.cli.resume import (
    begun,
    checkpoints_of,
    from_anywhere,
    resume_command,
    resumed_sweep,
    sweep_record,
)
from feedax.cli.sweep_flags import MOST_NETWORKS, Combination, ManyFlags, Setting, SweepFlags
from feedax.data import NumpyLoader
from feedax.errors import RunFolderError, shown
from feedax.feed import Devices, Residents, Source
from feedax.loggers import Logger
from feedax.report.run_folder import REPORT
from feedax.report.sweep_folder import Record, SweepFolder
from feedax.train import Checkpoints, init_mlp
from feedax.train.check import ModelCheck
from feedax.train.evaluation import Evaluation
from feedax.train.history import Best
from feedax.train.model import Model, compute_dtype
from feedax.train.networks import Member, Network, file_name, network_name, setting_name
from feedax.train.progress import is_terminal
from feedax.train.recipe import hyperparams
from feedax.train.sweep import sweep_members

note = partial(say, "feedax sweep")
"""Says what is no line of a network and no table."""


@dataclass(frozen=True)
class Group:
    """Networks that one compiled program trains: they differ in its scalars and in their seeds.

    Attributes:
        name: what their settings have in common; no other group has it.
        members: the networks, as `feedax.sweep` names them.
        settings: of the sweep's flags, by those names.
        arguments: of `feedax.sweep` besides.
        flags: of the first of them.
        test: the test set, which is looked at once, when a network has ended.
    """

    name: str
    layers: Sequence[int]
    members: Sequence[Member]
    settings: Mapping[str, Setting]
    arguments: Mapping[str, Any]
    flags: TrainFlags
    test: NumpyLoader | None

    def name_of(self, network: Network) -> str:
        """The name that a network has in the whole sweep."""
        return network_name(network.seed, self.settings[network.name])

    def record(self, network: Network, side_by_side: int) -> Record:
        """What is written down of a network that was trained with others at the same time."""
        result = network.result
        if result is not None and network.error is None and self.test is not None:
            result = result | self._test_scores(network)
        return {
            "name": self.name_of(network),
            "setting": self.settings[network.name],
            "seed": network.seed,
            "seconds": sum(row["seconds"] for row in network.history) / side_by_side,
            "error": None if network.error is None else str(network.error),
            "params": "/".join(
                filter(None, ["networks", file_name(self.name), file_name(network.name)])
            )
            + ".safetensors",
            "result": result,
            "rows": network.history,
        }

    def _test_scores(self, network: Network) -> dict[str, float]:
        """The columns of the test set, of the parameters that are kept."""
        assert self.test is not None
        scalars = next(one.hyperparams for one in self.members if one.name == network.name)
        test = Source(self.test)
        (scores,) = self._test.of_each(network.params, None, scalars, test, "the test set")
        return {f"test_{name}": value for name, value in scores.items()}

    @cached_property
    def _test(self) -> Evaluation:
        """Compiled once for all networks."""
        asked = self.arguments
        model = Model(asked["predict"], dtype=compute_dtype(asked["precision"]))
        params = asked["init"](jax.random.key(0))
        scalars = dict.fromkeys(self.members[0].hyperparams, 0.0)
        check = ModelCheck(
            model, params, None, asked["loss"], None, scalars, modes=(False,), who="sweep"
        )
        return Evaluation(check, Residents(Devices(1), "sweep"))


def run(parsed: tuple[SweepFlags, Sequence[Combination]], arguments: Sequence[str]) -> int:
    """Train them all, and return the exit code."""
    flags, given = parsed
    use_compilation_cache()
    start = begun("sweep", arguments)
    folder, many = None, flags.sweep
    combinations = [replace(one, flags=from_anywhere(one.flags)) for one in given]
    if flags.checkpoint.resume is not None:
        folder = SweepFolder.open(flags.checkpoint.resume)
        many, combinations = resumed_sweep(folder, flags, given, arguments)
    data = combinations[0].flags.data
    seeds = _seeds(data.seed, many, len(combinations))
    examples = Examples.open(data)
    groups = groups_of(combinations, seeds, examples)
    is_resumed, log = folder is not None, combinations[0].flags.output.log
    refuse_missing(log)
    if folder is None:
        config = {"run": secrets.token_hex(8), "made_by": SweepFolder.command}
        config |= sweep_record(many, combinations) | {"dataset": data.dataset}
        out, name = flags.output.out, flags.output.name or examples.name
        folder = SweepFolder.create({**config, **start}, path=out, name=name)
    devices = Devices(combinations[0].flags.device.devices, who="sweep")
    note(f"the sweep's folder is {folder.path}; it trains on {devices}")

    # Held to the end, so that no other process resumes the same sweep.
    with Checkpoints(folder.path).used_by("sweep").in_use(), StopRequest() as stop:
        if is_resumed:
            folder.mark_resumed(sweep_record(many, combinations)["arguments"], start)
        names = {
            network_name(seed, one.setting): one.setting | {"seed": seed}
            for one in combinations
            for seed in seeds
        }
        loggers = loggers_of(log, folder, combinations[0].flags)
        records = _train(folder, groups, many, names, stop, loggers)
        done = [records[name] for name in names if name in records]
        is_complete = len(done) == len(names)
        folder.write_rows(done)
        folder.save_summary(done, is_complete)
    for line in tables(done):
        print(line)
    if not is_complete:
        rest = resume_command("sweep", folder.path, combinations[0].flags)
        note(
            f"stopped by {stop.by} after {len(done)} of {len(names)} networks; what they are is in "
            f"{folder.path}; resume it with: {rest}"
        )
        return stop.exit_code
    if all(one["error"] is not None for one in done):
        note(f"every network turned not-a-number; what they were before is in {folder.path}")
        return 1
    files = ["the networks", "summary.json", "curves.png"]
    if flags.output.report and combinations[0].flags.output.report:
        write = partial(write_sweep_report, folder, examples, folder.report_path)
        files += [REPORT] * try_to_write(write, folder, note)
    if is_terminal(sys.stdout):
        seconds = sum(one["seconds"] for one in done)
        rest = resume_command("sweep", folder.path, combinations[0].flags)
        more = f"{rest} --seeds {2 * len(seeds)}"
        print("\n".join(sweep_ending(folder.path, seconds, more)))
    else:
        note(f"done; {and_listed(files)} are in {folder.path}")
    return stop.exit_code  # not 0 when the request came too late to stop anything


def _train(
    folder: SweepFolder,
    groups: Sequence[Group],
    many: ManyFlags,
    names: Mapping[str, Setting],
    stop: StopRequest,
    loggers: Sequence[Logger],
) -> dict[str, Record]:
    """Train the networks that are not trained yet; all that are, by name."""
    records = {one["name"]: one for one in folder.whole_records()}
    for name, one in records.items():
        if names.get(name) != one["setting"] | {"seed": one["seed"]}:
            raise RunFolderError(
                f"run folder: {folder.metrics_path} must hold networks of this sweep, and it holds "
                f"one named {shown(name)}; restore it from a copy or train again"
            )
    if records:
        note(f"resumed: {len(records)} of {len(names)} networks are trained already")

    def keep(record: Record) -> None:
        records[record["name"]] = record
        folder.append_row(record)

    before = 0
    with SweepProgress(note, stop, list(names), keep) as progress:
        for group in groups:
            if stop.by:
                break
            checkpoints = checkpoints_of(group.flags.checkpoint, folder).used_by("sweep")
            if group.name:
                checkpoints = checkpoints.within(file_name(group.name))
            # Before a network is drawn: a folder can ask for one of any size.
            refuse_other_networks(checkpoints, group.layers, len(names))
            record = also_logged(group.record, loggers)
            found = sweep_members(
                group.members,
                together=many.together,
                checkpoints=checkpoints,
                callbacks=[progress.watch(record, before)],
                **group.arguments,
            )
            for network in found.networks:  # one may be saved and not written down by a kill
                if group.name_of(network) not in records:
                    keep(record(network, 1))
            before += len(found.networks)
    return records


def _seeds(first: int, many: ManyFlags, settings: int) -> range:
    if (count := many.seeds * settings) > MOST_NETWORKS:
        raise UsageError(
            f"a sweep must have at most {MOST_NETWORKS} networks, and it has {count}; lower --seeds"
        )
    last = first + many.seeds - 1
    if last >= 2**32:
        raise UsageError(f"the seeds must be below 2**32, and the last one is {last}; lower --seed")
    return range(first, last + 1)


def groups_of(
    combinations: Sequence[Combination], seeds: Sequence[int], examples: Examples
) -> list[Group]:
    """The networks of all combinations, those together that share a program.

    The data are loaded once. What is wrong with a combination is found here, before there is a
    folder.
    """
    together: dict[tuple[Any, ...], list[Combination]] = {}
    for one in combinations:
        together.setdefault(_program(one.flags), []).append(one)
    loaders: dict[DataFlags, dict[str, NumpyLoader]] = {}
    found = []
    for some in together.values():
        data = some[0].flags.data
        seen = Examples(data, examples.train, examples.test)
        if data not in loaders:
            loaders[data] = seen.loaders()
        found.append(_group(some, seeds, seen, loaders[data]))
    return found


def _group(
    combinations: Sequence[Combination],
    seeds: Sequence[int],
    examples: Examples,
    loaders: Mapping[str, NumpyLoader],
) -> Group:
    flags = combinations[0].flags
    # The whole training set is only looked at where it decides which parameters are kept.
    decides = (flags.selection.best or "").startswith("train_")
    evaluated = ("train", "validation") if decides else ("validation",)
    sets = {name: loader for name, loader in loaders.items() if name in evaluated}
    Devices(flags.device.devices, who="sweep")
    Best(flags.selection.best, flags.selection.patience, "sweep").check(sets)
    arguments = fit_arguments(flags, examples, loaders["train"])
    del arguments["learning_rate"], arguments["hyperparams"]  # each network has its own
    layers = resolve_layers(flags.model, examples, None)
    scalars_of = [(one, _scalars(one.flags)) for one in combinations]
    values = {
        name: list(dict.fromkeys(scalars[name] for _, scalars in scalars_of))
        for name in _scalars(flags)
    }
    swept = [name for name, some in values.items() if len(some) > 1]
    # In the order of `feedax.sweep`: the last scalar changes first.
    scalars_of.sort(key=lambda pair: [values[name].index(pair[1][name]) for name in swept])
    members: list[Member] = []
    settings: dict[str, Setting] = {}
    for one, scalars in scalars_of:
        setting = {name: scalars[name] for name in swept}
        rate = scalars.pop("learning_rate")
        new = [Member(seed, setting, rate, scalars) for seed in seeds]
        members += new
        settings |= {member.name: one.setting for member in new}
    common = {name: value for name, value in combinations[0].setting.items() if name not in swept}
    return Group(
        setting_name(common),
        layers,
        members,
        settings,
        {
            **arguments,
            "init": partial(init_mlp, layers, initialisation=flags.model.initialisation),
            "train": loaders["train"],
            "evaluate": sets,
            "best": flags.selection.best,
            "patience": flags.selection.patience,
            "devices": flags.device.devices,
        },
        flags,
        loaders.get("test"),
    )


def _program(flags: TrainFlags) -> tuple[Any, ...]:
    """What must be equal in networks that are trained by one program: all but numbers it is given.

    A hyperparameter of 0 is left out of the program, so it has another one.
    """
    given = {flag(name): None for name in _scalars(flags)}
    return tuple((flag_values(flags) | given).items())


def _scalars(flags: TrainFlags) -> dict[str, float]:
    scalars = {"learning_rate": flags.optimizer.learning_rate, **hyperparams(recipe_of(flags))}
    return {name: float(value) for name, value in scalars.items()}

"""``feedax sweep``."""

import dataclasses
import secrets
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from feedax.cli import UsageError, say
from feedax.cli.presets import description
from feedax.cli.sweep_flags import MOST_NETWORKS, ManyFlags, Setting, parse_sweep
from feedax.errors import RunFolderError, shown

if TYPE_CHECKING:
    from feedax.cli.stop import StopRequest
    from feedax.cli.sweep_groups import Group
    from feedax.report.sweep_folder import Record, SweepFolder
    from feedax.train import Checkpoints

DESCRIPTION = f"""\
Train many networks: every combination of the values that are given, many seeds each. A flag of one
number or one choice can have several values.

examples:
  feedax sweep --preset modern --seeds 20
  feedax sweep --learning-rate 0.0005 0.001 0.002 --optimizer adam --loss cross_entropy --seeds 5
  feedax sweep --preset modern --dropout 0 0.1 --batch-size 128 256 --validation 0.1
  feedax sweep --resume runs/20260131-142501-mnist

{description()}

The network of a seed is the one that feedax train trains with it. Standard output gets a line a
network, and tables of what the networks of each setting have in common; the sweep's folder gets
the configuration, networks.jsonl, summary.json, the curves, and the parameters of every network.
Ctrl-C stops in good order. Where a sweep stopped, or was killed, --resume goes on as if nothing had
happened."""


def run(arguments: Sequence[str]) -> int:
    """Train them all, and return the exit code."""
    flags, given = parse_sweep(arguments, DESCRIPTION)

    from feedax.cli.compilation_cache import use_compilation_cache
    from feedax.cli.examples import Examples
    from feedax.cli.recorded import to_name
    from feedax.cli.resume import from_anywhere
    from feedax.cli.stop import StopRequest
    from feedax.cli.sweep_groups import groups_of
    from feedax.cli.sweep_progress import tables
    from feedax.cli.sweep_resume import recorded, resumed
    from feedax.report.environment import environment
    from feedax.report.sweep_folder import SweepFolder, name_of
    from feedax.train import Checkpoints

    use_compilation_cache()
    begun = {
        "command": shlex.join(["feedax", "sweep", *arguments]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **environment(),
    }
    folder, many = None, flags.sweep
    combinations = [dataclasses.replace(one, flags=from_anywhere(one.flags)) for one in given]
    if flags.checkpoint.resume is not None:
        folder = SweepFolder.open(flags.checkpoint.resume)
        many, combinations = resumed(folder, flags, given, arguments)
    data = combinations[0].flags.data
    seeds = _seeds(data.seed, many, len(combinations))
    examples = Examples.open(data)
    groups = groups_of(combinations, examples)
    goes_on = folder is not None
    if folder is None:
        config = {"run": secrets.token_hex(8), "made_by": SweepFolder.command}
        config |= recorded(many, combinations) | {"dataset": data.dataset}
        out, name = flags.output.out, flags.output.name or examples.name
        folder = SweepFolder.create({**config, **begun}, path=out, name=name)
    note(f"the sweep's folder is {folder.path}")

    # Held to the end, so that no other process goes on with the same sweep.
    with Checkpoints(folder.path).in_use(), StopRequest() as stop:
        if goes_on:
            folder.go_on(recorded(many, combinations)["arguments"], begun)
        every = [one.setting | {"seed": seed} for one in combinations for seed in seeds]
        names = {name_of(one): one for one in every}
        records = _train(folder, groups, many, seeds, names, stop)
        done = [records[name] for name in names if name in records]
        is_complete = len(done) == len(names)
        folder.write_rows(done)
        folder.save_summary(done, is_complete)
    for line in tables(done):
        print(line)
    if not is_complete:
        named = to_name(folder.path, data)
        rest = shlex.join(["feedax", "sweep", "--resume", str(folder.path), *named])
        note(
            f"stopped by {stop.by} after {len(done)} of {len(names)} networks; what they are is in "
            f"{folder.path}; go on with: {rest}"
        )
        return stop.exit_code
    if all(one["error"] is not None for one in done):
        note(f"every network turned not-a-number; what they were before is in {folder.path}")
        return 1
    note(f"done; the networks, summary.json and curves.png are in {folder.path}")
    return stop.exit_code  # not 0 when the request came too late to stop anything


def _train(
    folder: "SweepFolder",
    groups: "Sequence[Group]",
    many: ManyFlags,
    seeds: Sequence[int],
    names: Mapping[str, Setting],
    stop: "StopRequest",
) -> "dict[str, Record]":
    """Train the networks that are not trained yet; all that are, by name."""
    from feedax.cli.network import refuse_other_networks
    from feedax.cli.sweep_progress import SweepProgress
    from feedax.train import sweep

    records = {one["name"]: one for one in folder.whole_records()}
    for name, one in records.items():
        if names.get(name) != one["setting"] | {"seed": one["seed"]}:
            raise RunFolderError(
                f"run folder: {folder.metrics_path} must hold networks of this sweep, and it holds "
                f"one named {shown(name)}; restore it from a copy or train again"
            )
    if records:
        note(f"goes on: {len(records)} of {len(names)} networks are trained already")

    def keep(record: "Record") -> None:
        records[record["name"]] = record
        folder.append_row(record)

    before = 0
    with SweepProgress(note, stop, list(names), keep) as progress:
        for group in groups:
            if stop.by:
                break
            checkpoints = _checkpoints(group, folder)
            # Before a network is drawn: a folder can ask for one of any size.
            refuse_other_networks(checkpoints, group.layers, len(names))
            found = sweep(
                seeds=seeds,
                together=many.together,
                checkpoints=checkpoints,
                callbacks=[progress.watch(group, before)],
                **group.arguments,
            )
            for network in found.networks:  # one may be saved and not written down by a kill
                if group.name_of(network) not in records:
                    keep(group.record(network, 1))
            before += len(found.networks)
    return records


def _checkpoints(group: "Group", folder: "SweepFolder") -> "Checkpoints":
    from feedax.train import Checkpoints
    from feedax.train.networks import file_name

    given = group.flags.checkpoint
    found = Checkpoints(
        folder.path,
        every_steps=given.checkpoint_every_steps,
        every_seconds=given.checkpoint_every_seconds,
        every_epochs=given.checkpoint_every_epochs,
        keep=given.keep_checkpoints,
        run=folder.setting("run"),
    ).within(folder.checkpoints_path.name)
    return found.within(file_name(group.name)) if group.name else found


def _seeds(first: int, many: ManyFlags, settings: int) -> range:
    if (count := many.seeds * settings) > MOST_NETWORKS:
        raise UsageError(
            f"a sweep must have at most {MOST_NETWORKS} networks, and it has {count}; lower --seeds"
        )
    last = first + many.seeds - 1
    if last >= 2**32:
        raise UsageError(f"the seeds must be below 2**32, and the last one is {last}; lower --seed")
    return range(first, last + 1)


def note(sentence: str) -> None:
    """Say something that is no line of a network and no table."""
    say("feedax sweep", sentence)

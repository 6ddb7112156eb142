"""What a run's folder says of the flags and the network that the run was started with.

The folder may come from somebody else. Of what its flags name, a person names again what would run
code, read or write outside of the folder, or start many processes.
"""

import os
import shlex
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from feedax.cli import UsageError
from feedax.cli.flag_words import flag_names, given_flags
from feedax.cli.flags import HIDDEN, DataFlags, ModelFlags, TrainFlags
from feedax.cli.parse import parse
from feedax.errors import RunFolderError, printable, shown
from feedax.machine import usable_cpus

if TYPE_CHECKING:
    from feedax.report.run_folder import RunFolder

MANY_PROCESSES = max(16, usable_cpus())
"""Workers that a folder may start without being asked."""


def recorded_flags(folder: "RunFolder") -> TrainFlags:
    """The flags that a run was started with.

    All of them are recorded, so its preset changes none: it may be another one by now.

    Raises:
        RunFolderError: they cannot be read.
    """
    words: list[str] = folder.setting("arguments")
    try:
        # The parser has flags of its own too, such as --help and one that writes a file.
        foreign = {"-h"}.intersection(words)
        foreign |= set(given_flags(words)) - set(flag_names(TrainFlags))
        if foreign:
            raise UsageError(f"there is no flag {printable(min(foreign))}")
        return parse(TrainFlags, words, "train", "")
    except UsageError as error:
        raise RunFolderError(
            f"run folder: {folder.path / 'config.json'} must hold the flags of feedax train, and "
            f"they cannot be read ({error}); use the version of feedax that wrote "
            "it"
        ) from error


def recorded_layers(folder: "RunFolder", flags: ModelFlags) -> list[int]:
    """The sizes of the layers of a run, which agree with its flags.

    Raises:
        RunFolderError: they do not.
    """
    layers: list[int] = folder.setting("layers")
    hidden = flags.hidden if flags.layers is None else flags.layers[1:-1]
    if hidden is None and flags.initial_params is None:
        hidden = HIDDEN
    ends = (layers[0], layers[-1]) if flags.layers is None else (flags.layers[0], flags.layers[-1])
    if hidden is not None and layers != [ends[0], *hidden, ends[1]]:
        raise RunFolderError(
            f"run folder: 'layers' of {folder.path / 'config.json'} must be those of its flags, "
            f"and it is {shown(layers)}; restore the file from a copy or train again"
        )
    return layers


def refuse_unnamed(folder: Path, flags: DataFlags, given: Collection[str], who: str) -> None:
    """Refuse flags of a run's folder that a person has to name; say what is read in the folder.

    Args:
        folder: of the run.
        flags: that it records.
        given: the names of those that are given on the command line.
        who: begins what is said.

    Raises:
        RunFolderError: one of them is not given.
    """
    reasons = {name: why for name, why in _reasons(folder, flags).items() if name not in given}
    if reasons:
        words = shlex.join(_words(flags, list(reasons)))
        raise RunFolderError(f"run folder: {next(iter(reasons.values()))}; add {words}")
    if "--dataset" not in given and _is_path(flags.dataset):
        what = printable(flags.dataset)
        print(f"{who}: reads {what}, which {folder} names", file=sys.stderr, flush=True)


def refuse_unnamed_start(folder: Path, start: Path | None, given: Collection[str]) -> None:
    """Refuse to begin with the parameters of another run that a person has not named.

    Raises:
        RunFolderError: they are not named.
    """
    if start is not None and "--initial-params" not in given:
        raise RunFolderError(
            "run folder: parameters of another run must be named by you, not by a file, and those "
            f"that {folder} begins with are {printable(str(start))}; add "
            f"{shlex.join(['--initial-params', str(start)])}"
        )


def to_name(folder: Path, flags: DataFlags) -> list[str]:
    """The words that a command needs to go on with such flags."""
    return _words(flags, list(_reasons(folder, flags)))


def _words(flags: DataFlags, names: list[str]) -> list[str]:
    values = {name: getattr(flags, name.removeprefix("--").replace("-", "_")) for name in names}
    return [word for name, value in values.items() for word in (name, str(value))]


def _reasons(folder: Path, flags: DataFlags) -> dict[str, str]:
    """The flags that a person has to name, and why."""
    from feedax.datasets import is_code

    reasons, dataset = {}, printable(flags.dataset)
    if is_code(flags.dataset):
        reasons["--dataset"] = (
            f"code must be named by you, not by a file, and the dataset of {folder} is made by "
            f"{dataset}"
        )
    elif _is_path(flags.dataset) and not _is_inside(folder, flags.dataset.partition(":")[2]):
        reasons["--dataset"] = (
            "data outside of a run's folder must be named by you, not by a file, and the dataset "
            f"of {folder} is {dataset}"
        )
    if flags.root is not None:
        reasons["--root"] = (
            "a folder that data are read from and written to must be named by you, not by a file, "
            f"and that of {folder} is {printable(str(flags.root))}"
        )
    if flags.num_workers > MANY_PROCESSES:
        reasons["--num-workers"] = (
            f"more than {MANY_PROCESSES} processes must be asked for by you, not by a file, and "
            f"{folder} asks for {flags.num_workers}"
        )
    return reasons


def _is_path(dataset: str) -> bool:
    from feedax.datasets import is_path

    return is_path(dataset)


def _is_inside(folder: Path, path: str) -> bool:
    """Whether a path leads into a folder, and nothing in it out again."""
    place, within = Path(path).expanduser().resolve(), folder.resolve()
    if not place.is_relative_to(within):
        return False
    return not any(
        os.path.islink(os.path.join(top, name))
        for top, folders, files in os.walk(place)
        for name in (*folders, *files)
    )

"""What a run's folder says of the flags and the network that the run was started with."""

from typing import TYPE_CHECKING

from feedax.cli import UsageError
from feedax.cli.flag_words import flag_names, given_flags
from feedax.cli.flags import TrainFlags
from feedax.cli.parse import parse
from feedax.errors import RunFolderError

if TYPE_CHECKING:
    from feedax.report.run_folder import RunFolder


def recorded_flags(folder: "RunFolder") -> TrainFlags:
    """The flags that a run was started with.

    All of them are recorded, so its preset changes none: it may be another one by now.

    Raises:
        RunFolderError: they cannot be read.
    """
    arguments = folder.setting("arguments")
    try:
        words = [str(word) for word in arguments]
        # The parser has flags of its own too, such as --help and one that writes a file.
        foreign = {"-h"}.intersection(words)
        foreign |= set(given_flags(words)) - set(flag_names(TrainFlags))
        if foreign:
            raise UsageError(f"there is no flag {min(foreign)}")
        return parse(TrainFlags, words, "train", "")
    except (UsageError, TypeError) as error:
        raise RunFolderError(
            f"run folder: {folder.path / 'config.json'} must hold the flags of feedax train, and "
            f"they cannot be read ({error}); use the version of feedax that wrote it"
        ) from error


def recorded_layers(folder: "RunFolder") -> list[int]:
    """The sizes of the layers of a run.

    Raises:
        RunFolderError: config.json has no such list.
    """
    layers = folder.setting("layers")
    sizes = layers if isinstance(layers, list) else []
    if len(sizes) < 2 or any(type(size) is not int or size < 1 for size in sizes):
        raise RunFolderError(
            f"run folder: 'layers' of {folder.path / 'config.json'} must be a list of sizes, and "
            f"it is {layers!r}; restore the file from a copy or train again"
        )
    return sizes

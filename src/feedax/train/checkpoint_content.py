"""What a checkpoint holds besides its arrays: one class, its writer and its reader.

The reader trusts nothing: a SHA-256 keeps out accidents, and nothing that somebody wrote with
intent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feedax.errors import CheckpointError, NotANumberError, shown
from feedax.feed import SourcePosition
from feedax.storage.plain_json import (
    COUNT,
    TEXT,
    WORDS,
    Rule,
    broken_rule,
    is_count,
    is_list_of,
    is_number,
    is_row,
    is_text,
    or_none,
)
from feedax.train.history import Row


@dataclass(frozen=True)
class NetworkContent:
    """What a checkpoint holds of each network.

    Attributes:
        position: where its source stands.
        best: see `Best.state_dict`.
        has_ended: whether it is trained no longer, though others of its group are.
        failure: the epoch and the step in which it turned not-a-number, or None.
    """

    position: SourcePosition
    best: dict[str, Any]
    history: list[Row]
    has_ended: bool = False
    failure: tuple[int, int] | None = None


@dataclass(frozen=True)
class CheckpointContent:
    """What a checkpoint of a run holds besides its arrays.

    Attributes:
        epoch: epochs that have ended.
        step: steps done in all.
        epoch_step: steps done in this epoch.
        seconds: of training in this epoch.
        metrics: their names.
        environment: see `feedax.train.environment`.
        form: how the steps ran, see `Steps.form`; None where nobody wrote it down.
        names: of the networks of a group; None for a single run.
        size: how many networks the programs of a group are for.
        copies: the copies of parameters and model states beside the state, by name.
    """

    epoch: int
    step: int
    epoch_step: int
    seconds: float
    metrics: list[str]
    environment: dict[str, Any]
    form: str | None
    networks: Sequence[NetworkContent]
    names: list[str] | None
    size: int
    copies: list[str]

    def to_json(self) -> dict[str, Any]:
        """As it is written, with the keys of format 1."""
        shared = {name: getattr(self, name) for name in _SHARED}
        if self.names is None:
            (network,) = self.networks
            own = {"position": network.position, "best": network.best, "history": network.history}
            return shared | own
        ended = [
            [i, one.failure and list(one.failure)]
            for i, one in enumerate(self.networks)
            if one.has_ended
        ]
        return shared | {
            "networks": self.names,
            "size": self.size,
            "positions": [one.position for one in self.networks],
            "best": [one.best for one in self.networks],
            "histories": [one.history for one in self.networks],
            "copies": self.copies,
            "ended": ended,
        }

    @classmethod
    def from_json(
        cls, found: dict[str, Any], path: Path, is_group: bool, who: str
    ) -> "CheckpointContent":
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: the file holds something else.
        """
        if is_group:
            found = {"form": None, **found}  # earlier versions did not write it
        _refuse_broken(found, _GROUP if is_group else _RUN, path, who)
        shared = {name: found[name] for name in _SHARED}
        if not is_group:
            network = NetworkContent(found["position"], found["best"], found["history"])
            if (count := len(network.history)) != found["epoch"]:
                raise _broken(
                    f"'history' of {path} must have a row for each epoch, and it has {count}",
                    who,
                )
            copies = ["best"] if network.best["step"] >= 0 else []
            return cls(**shared, networks=[network], names=None, size=1, copies=copies)
        lists = [found[name] for name in ("networks", "positions", "best", "histories")]
        ended = dict(found["ended"])
        if len({len(one) for one in lists}) > 1 or not ended.keys() <= set(range(len(lists[0]))):
            raise _broken(f"{path} must have an entry for each network, and it does not", who)
        columns = zip(found["positions"], found["best"], found["histories"], strict=True)
        networks = [
            NetworkContent(*column, i in ended, ended.get(i) and tuple(ended[i]))
            for i, column in enumerate(columns)
        ]
        names, size, copies = (found[name] for name in ("networks", "size", "copies"))
        return cls(**shared, networks=networks, names=names, size=size, copies=copies)


@dataclass(frozen=True)
class EndedNetworkContent:
    """What the file of a network of a sweep holds besides its arrays, when it has ended.

    Attributes:
        asked: what it was trained with: the numbers of its specification, and the sweep's name.
        history: its rows.
        error: why it ended before its time, or None.
    """

    asked: Mapping[str, Any]
    history: list[Row]
    error: NotANumberError | None

    def to_json(self) -> dict[str, Any]:
        """As it is written, with the keys of format 1."""
        error = self.error and [str(self.error), self.error.epoch, self.error.step]
        return {**self.asked, "history": self.history, "error": error}

    @classmethod
    def from_json(
        cls, found: dict[str, Any], path: Path, asked: Mapping[str, Any]
    ) -> "EndedNetworkContent":
        """Read what `to_json` wrote of a network that is asked for with the same numbers.

        Raises:
            CheckpointError: it was trained with others, or the file holds something else.
        """
        for name, value in asked.items():
            if found.get(name) != value:
                raise CheckpointError(
                    f"sweep: a resumed sweep must have what it began with, and in {path} {name} "
                    f"was {shown(found.get(name))} but is {shown(value)}; give the same, or "
                    "another folder"
                )
        _refuse_broken(found, _ENDED, path, "sweep")
        error = None
        if found["error"] is not None:
            error = NotANumberError(found["error"][0])
            error.epoch, error.step = found["error"][1:]
        return cls(asked, found["history"], error)


def _is_position(value: Any) -> bool:
    if isinstance(value, dict) and "loader" in value:
        return isinstance(value["loader"], dict)
    return isinstance(value, dict) and is_count(value.get("batches"))


def _is_best(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"column", "value", "epoch", "step"}
        and (value["column"] is None or is_text(value["column"]))
        and (value["value"] is None or is_number(value["value"]))
        and all(value[name] == -1 or is_count(value[name]) for name in ("epoch", "step"))
    )


def _are_values(value: Any) -> bool:
    return isinstance(value, dict) and all(
        name.isprintable() and (one is None or is_text(one) or is_number(one) or type(one) is bool)
        for name, one in value.items()
    )


def _is_error(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and is_text(value[0])
        and value[0].isprintable()
        and all(map(is_count, value[1:]))
    )


def _is_end(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and is_count(value[0])
        and (value[1] is None or (is_list_of(is_count)(value[1]) and len(value[1]) == 2))
    )


_ROWS: Rule = ("a list of rows", is_list_of(is_row))
_SHARED: dict[str, Rule] = {
    "epoch": COUNT,
    "step": COUNT,
    "epoch_step": COUNT,
    "seconds": ("a number", is_number),
    "metrics": WORDS,
    "environment": ("values by name", _are_values),
    "form": or_none(TEXT),
}
_RUN: dict[str, Rule] = _SHARED | {
    "position": ("a place in an epoch", _is_position),
    "best": ("a column with its best value", _is_best),
    "history": _ROWS,
}
_GROUP: dict[str, Rule] = _SHARED | {
    "networks": WORDS,
    "size": COUNT,
    "positions": ("a list of places in an epoch", is_list_of(_is_position)),
    "best": ("a list of columns with their best values", is_list_of(_is_best)),
    "histories": ("a list of lists of rows", is_list_of(is_list_of(is_row))),
    "copies": WORDS,
    "ended": ("a list of networks that have ended", is_list_of(_is_end)),
}
_ENDED: dict[str, Rule] = {
    "history": _ROWS,
    "error": or_none(("a message, an epoch and a step", _is_error)),
}


def _refuse_broken(found: dict[str, Any], rules: Mapping[str, Rule], path: Path, who: str) -> None:
    """Refuse a checkpoint that holds something else than checkpoints hold."""
    broken = broken_rule(found, rules, path)
    if broken is None and (lacking := rules.keys() - found.keys()):
        broken = f"{path} must have {min(lacking)!r}, and it does not"
    if broken is not None:
        raise _broken(broken, who)


def _broken(what: str, who: str) -> CheckpointError:
    return CheckpointError(f"{who}: {what}; use an earlier checkpoint")

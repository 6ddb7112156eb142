"""Which networks of a sweep are trained by one compiled program, and what they are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax

from feedax.cli.examples import Examples
from feedax.cli.flag_words import flag_values
from feedax.cli.flags import DataFlags, TrainFlags
from feedax.cli.network import initial_params, resolve_layers
from feedax.cli.recipe import fit_arguments, hyperparams
from feedax.cli.sweep_flags import Combination, Setting
from feedax.data import NumpyLoader
from feedax.feed import Devices, Residents, Source
from feedax.report.sweep_folder import Record, name_of
from feedax.train.check import ModelCheck
from feedax.train.evaluation import Evaluation
from feedax.train.history import Best
from feedax.train.model import Model, compute_dtype
from feedax.train.networks import Network, file_name


@dataclass(frozen=True)
class Group:
    """Settings that differ in scalars of one program, and what `feedax.sweep` is asked for them.

    Attributes:
        name: of the settings, by what they have in common; no other group has it.
        layers: the sizes of the layers of each.
        arguments: of `feedax.sweep`, without seeds, checkpoints and callbacks.
        flags: of the first of them.
        test: the loader of the test set, which is looked at once, when a network has ended; None
            where there is none.
    """

    name: str
    layers: Sequence[int]
    arguments: dict[str, Any]
    flags: TrainFlags
    test: NumpyLoader | None
    _settings: dict[tuple[tuple[str, float], ...], Setting]
    _common: dict[str, float]

    def setting_of(self, network: Network) -> Setting:
        """The values of the sweep's flags that a network of this group has."""
        return self._settings[_key({**self._common, **network.setting})]

    def name_of(self, network: Network) -> str:
        """The name that a network has in the whole sweep."""
        return name_of(self.setting_of(network) | {"seed": network.seed})

    def record(self, network: Network, side_by_side: int) -> Record:
        """What is written down of a network that was trained with others at the same time."""
        result = network.result
        if result is not None and network.error is None and self.test is not None:
            result = result | self._test_scores(network)
        return {
            "name": self.name_of(network),
            "setting": self.setting_of(network),
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
        scalars = {
            name: network.setting.get(name, value)
            for name, value in self.arguments["hyperparams"].items()
        }
        scores = self._test.of(network.params, None, scalars, Source(self.test), "the test set")
        return {f"test_{name}": value for name, value in scores.items()}

    @cached_property
    def _test(self) -> Evaluation:
        """Compiled once for all networks."""
        asked = self.arguments
        model = Model(asked["predict"], dtype=compute_dtype(asked["precision"]))
        params = asked["init"](jax.random.key(0))
        scalars = dict.fromkeys(asked["hyperparams"], 0.0)
        check = ModelCheck(model, params, None, asked["loss"], None, scalars, modes=(False,))
        return Evaluation(model, check, Residents(Devices(1)))


def groups_of(combinations: Sequence[Combination], examples: Examples) -> list[Group]:
    """The combinations, those together that share a program; the data are loaded once.

    What is wrong with one of them is found out here, before there is a folder.

    Raises:
        FeedaxError: as in `feedax train`.
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
        found.append(_group(some, seen, loaders[data]))
    return found


def _group(
    combinations: Sequence[Combination], examples: Examples, loaders: Mapping[str, NumpyLoader]
) -> Group:
    flags = combinations[0].flags
    sets = {name: loader for name, loader in loaders.items() if name in _evaluated(flags)}
    Devices(flags.device.devices)
    Best(flags.selection.best, flags.selection.patience).check(sets)
    arguments = fit_arguments(flags, examples, loaders["train"])
    test = loaders.get("test")
    del arguments["key"]  # every network has its own

    scalars = [_scalars(one.flags) for one in combinations]
    values = {name: list(dict.fromkeys(one[name] for one in scalars)) for name in scalars[0]}
    many = {name: some if len(some) > 1 else some[0] for name, some in values.items()}
    swept = [name for name, some in values.items() if len(some) > 1]
    common = {name: value for name, value in combinations[0].setting.items() if name not in swept}
    return Group(
        name_of(common),
        resolve_layers(flags.model, examples, None),
        {
            **arguments,
            "init": build_init(flags, examples),
            "train": loaders["train"],
            "evaluate": sets,
            "learning_rate": many.pop("learning_rate"),
            "hyperparams": many,
            "best": flags.selection.best,
            "patience": flags.selection.patience,
            "devices": flags.device.devices,
        },
        flags,
        test,
        {_key(one): of.setting for one, of in zip(scalars, combinations, strict=True)},
        {name: some[0] for name, some in values.items() if len(some) == 1},
    )


def _program(flags: TrainFlags) -> tuple[Any, ...]:
    """What must be equal in networks that are trained by one program: all but numbers it is given.

    A hyperparameter of 0 is left out of the program, so it has another one.
    """
    given = {f"--{name.replace('_', '-')}": None for name in _scalars(flags)}
    return tuple((flag_values(flags) | given).items())


def _scalars(flags: TrainFlags) -> dict[str, float]:
    return {"learning_rate": flags.optimizer.learning_rate, **hyperparams(flags)}


def _key(scalars: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted((name, float(value)) for name, value in scalars.items()))


def _evaluated(flags: TrainFlags) -> tuple[str, ...]:
    """The whole training set is only looked at where it decides which parameters are kept."""
    decides = (flags.selection.best or "").startswith("train_")
    return ("train", "validation") if decides else ("validation",)


def build_init(flags: TrainFlags, examples: Examples) -> Callable[[jax.Array], Any]:
    """What makes the parameters of a network of the key of its seed."""
    layers = list(resolve_layers(flags.model, examples, None))
    return partial(_initial_params, layers, flags.model.initialisation)


def _initial_params(layers: Sequence[int], initialisation: str, key: jax.Array) -> Any:
    # The words of a key of a seed below 2**32 are 0 and the seed.
    return initial_params(layers, int(jax.random.key_data(key)[-1]), initialisation)

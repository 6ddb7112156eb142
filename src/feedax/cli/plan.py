"""``feedax plan``."""

from collections.abc import Sequence, Sized
from typing import cast

from feedax.cli.commands import PlanFlags
from feedax.cli.examples import TITLES, Examples


def run(flags: PlanFlags, arguments: Sequence[str]) -> int:
    """Print the plan, and return the exit code."""
    for name, loader in Examples.open(flags.data).loaders().items():
        try:
            size = f"{len(cast(Sized, loader.dataset)):,} examples in {len(loader):,} batches"
        except TypeError:  # a stream does not know
            size = "a stream of examples"
        print(f"{TITLES[name]} set: {size}\n  {loader.plan()}")
    return 0

"""``feedax plan``."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from typing import cast

from feedax.cli.flags import DataFlags
from feedax.cli.parse import parse

DESCRIPTION = """\
Say how a dataset's batches would be made, and why; train nothing.

examples:
  feedax plan
  feedax plan --dataset my.module:make_dataset --num-workers 4"""


@dataclass(frozen=True)
class PlanFlags:
    data: DataFlags = field(default_factory=DataFlags)


def run(arguments: Sequence[str]) -> int:
    """Print the plan, and return the exit code."""
    flags = parse(PlanFlags, arguments, "plan", DESCRIPTION)

    from feedax.cli.examples import TITLES, Examples

    for name, loader in Examples.open(flags.data).loaders().items():
        try:
            size = f"{len(cast(Sized, loader.dataset)):,} examples in {len(loader):,} batches"
        except TypeError:  # a stream does not know
            size = "a stream of examples"
        print(f"{TITLES[name]} set: {size}\n  {loader.plan()}")
    return 0

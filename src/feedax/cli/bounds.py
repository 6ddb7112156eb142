"""What the values of flags must be, and the sentences that say so."""

import math

from feedax.cli import UsageError


def at_least(flag: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise UsageError(f"{flag} must be at least {least}, and it is {value}")


def above_zero(flag: str, value: float | None) -> None:
    if value is not None and not 0 < value < math.inf:
        raise UsageError(f"{flag} must be a finite number above 0, and it is {value}")


def from_zero_on(flag: str, value: float | None) -> None:
    if value is not None and not 0 <= value < math.inf:
        raise UsageError(f"{flag} must be a finite number from 0 on, and it is {value}")


def share(flag: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UsageError(f"{flag} must be a share from 0 to below 1, and it is {value}")

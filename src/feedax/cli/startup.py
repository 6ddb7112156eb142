"""Where the seconds go between the start of the process and the first step."""

import os
import time
from pathlib import Path


class StartUp:
    """Splits the time since the process started into named parts.

    >>> clock = StartUp()
    >>> clock.ends("imports")
    >>> clock.ends("data")
    >>> str(clock).startswith("start-up "), list(clock.seconds)
    (True, ['imports', 'data'])

    Attributes:
        seconds: how long each part took, in order.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = process_started()

    def ends(self, part: str) -> None:
        """Name what has been done since the last part ended, or since the process started."""
        now = time.time()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.seconds.items())
        return f"start-up {sum(self.seconds.values()):.1f} s: {parts}"


def process_started() -> float:
    """When this process started, in seconds since the epoch; now where Linux does not say."""
    try:
        # After the name of the program, which may hold anything; see proc_pid_stat(5), field 22.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.time()
    return time.time() - age

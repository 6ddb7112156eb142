"""When a run looks up from its steps: to tell of them, to save, to stop."""

import time

from feedax.feed import CHUNK_STEPS
from feedax.train.history import EpochClock
from feedax.train.peers import Peers
from feedax.train.steps import CHUNK_SECONDS, Steps


class Pace:
    """A few times a second, and with several processes on all of them after the same step.

    One process looks at its clock. Several cannot: process 0 tells the others how many steps to do
    until they meet again.

    Args:
        steps: runs the steps.
        peers: the processes that train together.
    """

    def __init__(self, steps: Steps, peers: Peers) -> None:
        self._steps = steps
        self._peers = peers
        self._length = self._left = 1
        self._since = time.perf_counter()

    def most_steps(self) -> int:
        """How many steps may be done before looking up."""
        return self._steps.chunk_length if self._peers.count == 1 else self._left

    def is_due(self, count: int, clock: EpochClock) -> bool:
        """Whether to look up after so many more steps."""
        self._left -= count
        return clock.is_due() if self._peers.count == 1 else self._left <= 0

    def agreed(self, save: bool) -> bool:
        """Whether process 0 wants to save; and how many steps there are until the next time."""
        if self._peers.count == 1:
            return save
        done, now = max(1, self._length - self._left), time.perf_counter()
        fitting = int(done * CHUNK_SECONDS / (now - self._since))
        length = max(1, min(fitting, 2 * self._length, CHUNK_STEPS))
        save, self._length = self._peers.broadcast([save, length])
        self._left, self._since = self._length, now
        return save

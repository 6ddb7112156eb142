"""A real terminal for tests of what a person sees there."""

import os
import pty
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Terminal:
    """A command that was run on a terminal.

    Args:
        words: the command.
        stdout: where its standard output goes, if not onto the terminal as well.
        interrupt: Ctrl-C is pressed when this is on the screen.

    Attributes:
        raw: all that was sent to the terminal.
        text: the same without control sequences, each drawing of a line on a line of its own.
    """

    def __init__(
        self, words: Sequence[str], cwd: Path, stdout: Any = None, interrupt: bytes | None = None
    ) -> None:
        leader, follower = pty.openpty()
        process = subprocess.Popen(
            words,
            cwd=cwd,
            stdin=follower,
            stdout=stdout or follower,
            stderr=follower,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
        )
        os.close(follower)
        self.raw = b""
        while True:
            try:
                self.raw += os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            if interrupt is not None and interrupt in self.raw:
                process.send_signal(signal.SIGINT)
                interrupt = None
        os.close(leader)
        self.returncode = process.wait(60)
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw.decode())
        self.text = re.sub(r"\r\n|\r", "\n", text)

    @property
    def is_in_good_order(self) -> bool:
        """Whether the cursor is there again."""
        return self.raw.count(b"\x1b[?25l") <= self.raw.count(b"\x1b[?25h")

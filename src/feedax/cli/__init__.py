"""The command line: parse, call the library, print.

Exit codes: 0 done, 1 the run failed, 2 the command line was wrong, 130 stopped by Ctrl-C,
143 stopped by SIGTERM, 141 nobody reads the output any more. An output that was closed before the
start is one to the null device; what nobody reads of standard error changes nothing.
"""

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TextIO

import feedax
from feedax.errors import (
    FREE_SPACE,
    NO_SUCH_SET,
    OTHER_FOLDER,
    FeedaxError,
    UnknownDatasetError,
    one_line,
    shown,
)

COMMANDS = {
    "train": "train a network; by default the JAX tutorial's, on MNIST",
    "sweep": "train many networks: every combination of settings, many seeds each",
    "evaluate": "loss and accuracy of a trained run",
    "predict": "what a trained run sees in image files",
    "plan": "how a dataset's batches would be made, and why",
}

HELP = f"""\
usage: feedax COMMAND ...

PyTorch picks the examples. JAX does the arithmetic.

commands:
{"".join(f"  {name:<10}{what}{chr(10)}" for name, what in COMMANDS.items())}
examples:
  feedax train                                   the tutorial, 8 epochs
  feedax train --hidden 256 --optimizer adam --learning-rate 0.001 --loss cross_entropy --shuffle
  feedax train --resume runs/20260131-142501-mnist      resume where it stopped or was killed
  feedax sweep --preset modern --seeds 20        how far does the seed matter?
  feedax evaluate runs/20260131-142501-mnist
  feedax predict runs/20260131-142501-mnist seven.png

feedax COMMAND --help says more. feedax --version prints the version.
"""


REMEDIES = {
    OTHER_FOLDER: "choose another one with --out",
    FREE_SPACE: "free some space or choose another one with --out",
    NO_SUCH_SET: "give --validation 0.1, or another --best",
}
"""What a script is told to do, and what a person at the command line is told instead."""


class UsageError(Exception):
    """The command line is wrong: one sentence, exit code 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    is_process, argv = argv is None, sys.argv[1:] if argv is None else list(argv)
    who = f"feedax {argv[0]}" if argv and argv[0] in COMMANDS else "feedax"
    if is_process:
        _open_what_is_closed()
        _let_ctrl_c_end_this_process(who)
    try:
        code = _run(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        forget(sys.stdout)
        return 141
    except KeyboardInterrupt:
        return _fail(who, "stopped by Ctrl-C", 130)
    except (UsageError, UnknownDatasetError) as error:
        return _fail(who, str(error), 2)
    except FeedaxError as error:
        if error.remedy in REMEDIES:
            error = error.with_remedy(REMEDIES[error.remedy])
        return _fail(who, str(error), 1)
    except Exception as error:
        if os.environ.get("FEEDAX_TRACEBACK"):
            raise
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return _fail(who, f"{what} (FEEDAX_TRACEBACK=1 feedax ... shows where)", 1)
    return code


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"feedax {feedax.__version__}")
        return 0
    name, *arguments = argv
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, [*COMMANDS, "--help", "--version"], n=1)
        remedy = f"did you mean {near[0]}?" if near else "see feedax --help"
        raise UsageError(
            f"the command must be one of {', '.join(COMMANDS)}, not {name!r}; {remedy}"
        )
    # The flags first, and then the command that runs: --help waits neither for JAX nor for PyTorch.
    commands = importlib.import_module("feedax.cli.commands")
    arguments = commands.renamed(arguments)
    try:
        flags = commands.PARSERS[name](arguments)
        code: int = importlib.import_module(f"feedax.cli.{name}").run(flags, arguments)
    except SystemExit as stop:
        if any(word.startswith(("-h", "--help", "--tyro-")) for word in arguments):
            raise  # the parser has printed what was asked for
        raise FeedaxError(
            "a command ends by itself, and code that it ran (the dataset's?) ended it with exit "
            f"code {shown(stop.code)}; take sys.exit out of that code"
        ) from stop
    return code


def _let_ctrl_c_end_this_process(who: str) -> None:
    """While JAX and torch are imported, an exception may be lost in one of their callbacks."""

    def end(number: int, frame: FrameType | None) -> None:
        os.write(2, f"{who}: stopped by Ctrl-C\n".encode())
        os._exit(130)

    # A process started in the background ignores Ctrl-C, and still does.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)


def _open_what_is_closed() -> None:
    """Without this a file that is opened later is standard output for those who write to it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
            mode = "w" if number else "r"
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


def _fail(who: str, sentence: str, code: int) -> int:
    try:
        sys.stdout.flush()
    except OSError:
        forget(sys.stdout)
    say(who, one_line(sentence))
    return code


def say(who: str, sentence: str) -> None:
    """Say a sentence on standard error; no run ends because nobody can read it."""
    try:
        print(f"{who}: {sentence}", file=sys.stderr, flush=True)
    except OSError:
        forget(sys.stderr)


def forget(stream: TextIO) -> None:
    """Let what is still written go nowhere, the interpreter's last flush too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)

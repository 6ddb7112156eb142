"""The command line: parse, call the library, print.

Exit codes: 0 done, 1 the run failed, 2 the command line was wrong, 130 stopped by Ctrl-C,
143 stopped by SIGTERM, 141 nobody reads the output any more. An output that was closed before the
start is one to the null device; what nobody reads of standard error changes nothing.
"""

import contextlib
import difflib
import gc
import importlib
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import TextIO

import feedax
from feedax.errors import FeedaxError, UnknownDatasetError, one_line, shown

COMMANDS = {
    "train": "train a network; by default the JAX tutorial's, on MNIST",
    "sweep": "train many networks: every combination of settings, many seeds each",
    "evaluate": "loss and accuracy of a trained run",
    "predict": "what a trained run sees in image files",
    "report": "a page about trained runs, for a browser",
    "show": "a page over a folder of runs, those that train too",
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
  feedax report runs/20260131-142501-mnist
  feedax show --open                             all runs, in the browser

feedax COMMAND --help says more. feedax --version prints the version.
"""


REMEDIES = {
    "choose another folder": "choose another one with --out",
    "convert it in the dataset, or give the loader a collate_fn": "convert it in the dataset",
    "free some space or choose another folder": "free some space or choose another one with --out",
    "give a NumpyLoader or a list that is not empty, not an iterator that ends": (
        "see that the dataset is not empty, and fills a batch if there is --drop-last"
    ),
    "give a transform with torchvision.transforms.Resize, or resize the files": (
        "resize the files, or give --dataset package.module:factory, a function that resizes them"
    ),
    "give all three of coordinator, processes and process": (
        "give all three of --coordinator, --processes and --process"
    ),
    "give both, best='validation_loss' and patience=3 say": "give --validation 0.1, or --best loss",
    "give evaluate={'validation': ...} and best='validation_loss', say": (
        "give --validation 0.1, or another --best"
    ),
    "give the last layer one output per class, or mend the labels": (
        "end --layers with the number of classes, or mend the labels"
    ),
    "give the loader the same dataset": "give the dataset that the run began with",
    "keep the workers from epoch to epoch with persistent_workers=True": (
        "lower --num-workers, or give --cache if an example is the same every time"
    ),
    "leave cache out if the dataset is random, or call refresh() if it was edited": (
        "leave --cache out if the dataset is random, or start again if it was edited"
    ),
    "let the collate_fn or the dataset make it so": "let the dataset make it so",
    "let the dataset give the label itself, argmax() of a one-hot target, or give "
    "loss=optax.softmax_cross_entropy": (
        "let the dataset give the label itself, argmax() of a one-hot target"
    ),
    "change the model, or give another loss": (
        "let the dataset give the number of its class as the label of an example"
    ),
    "make them equal in the dataset (resize, crop or pad), or give the loader a collate_fn": (
        "make them equal in the dataset (resize, crop or pad)"
    ),
    "make them smaller, or set jax_enable_x64": "make them smaller, or set JAX_ENABLE_X64=1",
    "raise the loader's memory_budget if the device has room for all examples": (
        "give --plan resident if the device has room for all examples"
    ),
}
"""What a script is told to do, and what a person at the command line is told instead."""

ARGUMENT = re.compile(
    r"(?<![\w/.-])(best|cache|coordinator|devices|num_workers|patience|plan|process|root|schedule|steps"
    r"|together|warmup_steps)=('[^']*'|[A-Z:]+|True|\d+)(?![\w/.-])"
)
"""An argument of the library that has a flag, as messages write it; not a part of a path."""


class UsageError(Exception):
    """The command line is wrong: one sentence, exit code 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    is_process, argv = argv is None, sys.argv[1:] if argv is None else list(argv)
    who = f"feedax {argv[0]}" if argv and argv[0] in COMMANDS else "feedax"
    if is_process:
        _open_what_is_closed()
        _let_ctrl_c_end_this_process(who)
    importing = _no_garbage_collected() if is_process else contextlib.nullcontext()
    try:
        code = _run(argv, importing)
        sys.stdout.flush()
    except BrokenPipeError:
        forget(sys.stdout)
        return 141
    except KeyboardInterrupt:
        return _fail(who, "stopped by Ctrl-C", 130)
    except (UsageError, UnknownDatasetError) as error:
        return _fail(who, str(error), 2)
    except FeedaxError as error:
        return _fail(who, in_flags(error), 1)
    except Exception as error:
        if os.environ.get("FEEDAX_TRACEBACK"):
            raise
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return _fail(who, f"{what} (FEEDAX_TRACEBACK=1 feedax ... shows where)", 1)
    return code


def _run(argv: list[str], importing: AbstractContextManager[None]) -> int:
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
        flags = commands.parsed(name, arguments)
        with importing:
            command = importlib.import_module(f"feedax.cli.{name}")
        code: int = command.run(flags, arguments)
    except SystemExit as stop:
        if any(word.startswith(("-h", "--help", "--tyro-")) for word in arguments):
            sys.stdout.flush()
            raise  # the parser has printed what was asked for
        raise FeedaxError(
            "a command ends by itself, and code that it ran (the dataset's?) ended it with exit "
            f"code {shown(stop.code)}; take sys.exit out of that code"
        ) from stop
    return code


@contextlib.contextmanager
def _no_garbage_collected() -> Iterator[None]:
    """What is made here stays: to look for garbage in it takes a second, at the end too."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


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


def in_flags(error: FeedaxError) -> str:
    """What an error says, to a person who has flags in place of a script's arguments."""
    if not error.rule:  # a worker sent the sentence alone, or it has no fields
        said, semicolon, remedy = str(error).rpartition("; ")
        return f"{said}{semicolon}{REMEDIES.get(remedy, remedy)}"

    def flag(match: re.Match[str]) -> str:
        name, value = match[1].replace("_", "-"), match[2].strip("'")
        return f"--{name}" if value == "True" else f"--{name} {value}"

    remedy = REMEDIES.get(error.remedy) or ARGUMENT.sub(flag, error.remedy)
    return f"{error.who}: {ARGUMENT.sub(flag, error.rule)}, and {error.found}; {remedy}"


def say(who: str, sentence: str) -> None:
    """Say a sentence on standard error; no run ends because nobody can read it."""
    try:
        print(f"{who}: {sentence}", file=sys.stderr, flush=True)
    except OSError:
        forget(sys.stderr)


def and_listed(words: Sequence[str]) -> str:
    """
    >>> and_listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([*[", ".join(words[:-1])] * (len(words) > 1), words[-1]])


def forget(stream: TextIO) -> None:
    """Let what is still written go nowhere, the interpreter's last flush too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)

"""How workers start: long lists that are not pickled again, and what fails to be unpickled."""

import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from helpers import left_over, run_script, slow, start_script
from torch.utils.data import Dataset

from feedax.data import NumpyLoader
from feedax.data.workers import server
from feedax.data.workers.pickling import PlainParts, candidates_in
from feedax.errors import ExampleError, WorkerError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are torch's own there")


class Holder(Dataset):
    """Has attributes; example i is what `look` makes of it and i."""

    def __init__(self, look, **attributes):
        self.look = look
        vars(self).update(attributes)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.look(self, index)


def pairs(count=60_000):
    return [(f"image {i}", i % 10) for i in range(count)]


def summed(data, index):
    """Everything that a dataset has, as text."""
    samples = data.samples
    ends = [repr(x) for x in (list(samples)[:3], list(samples)[-3:], len(samples))]
    return [*ends, os.getppid(), data.again is samples]


def is_gone(pid):
    path, deadline = Path(f"/proc/{pid}"), time.monotonic() + 60
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not path.exists()


def held(loader):
    return server._holders.get(id(loader))


def test_long_lists_are_unpickled_once_and_seen_as_they_are():
    data = Holder(summed, samples=pairs(), again=None, array=np.arange(9000))
    data.again = data.samples
    loader = NumpyLoader(data, None, num_workers=2)

    def epoch():
        rows = list(loader)
        want = [repr(data.samples[:3]), repr(data.samples[-3:]), repr(len(data.samples))]
        assert [row[:3] for row in rows] == [want] * 2
        assert all(row[4] for row in rows)
        [parent] = {int(row[3]) for row in rows}
        return parent

    first = epoch()
    assert first not in (os.getpid(), server._server.pid)
    assert epoch() == first
    data.samples[-1] = ("another", 7)
    second = epoch()
    assert second != first
    data.samples.append(("one more", 8))
    assert epoch() != second
    data.samples = data.again = list(data.samples)  # equal, but another list
    third = epoch()
    data.array[0] = 5  # what is pickled anew at any rate
    assert epoch() == third
    is_gone(first)
    os.kill(third, signal.SIGKILL)
    is_gone(third)
    assert epoch() != third
    del data.samples[:], data.again[:]
    assert epoch() == server._server.pid
    assert held(loader) is None


def test_a_process_that_holds_a_list_goes_with_the_loader():
    loader = NumpyLoader(Holder(summed, samples=pairs(), again=None), None, num_workers=1)
    parent = int(next(iter(loader))[3])
    assert held(loader) is not None
    count = len(server._holders)
    del loader
    assert len(server._holders) == count - 1
    is_gone(parent)


class Comparable(NumpyLoader):
    """A loader that cannot be a key of a dict."""

    def __eq__(self, other):
        return self is other

    __hash__ = None


def test_a_loader_that_is_not_hashable_has_workers_that_hold_a_list():
    loader = Comparable(Holder(summed, samples=pairs(), again=None), None, num_workers=1)
    assert int(next(iter(loader))[3]) != server._server.pid
    assert held(loader) is not None


def test_an_entry_of_the_path_that_python_skips_starts_workers_too(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, sys\nimport numpy as np\nimport feedax\n"
        "sys.path.append(pathlib.Path('/here'))\n"
        "data = feedax.ArrayDataset(np.arange(4.0), np.arange(4))\n"
        "loader = feedax.NumpyLoader(data, batch_size=2, num_workers=1, plan='streamed')\n"
        "print([x.tolist() for x, y in loader])\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[[0.0, 1.0], [2.0, 3.0]]\n", "")


CHANGES = {
    "list of lists": (
        lambda: [[f"image {i}", i] for i in range(60_000)],
        lambda x: x[30_000].__setitem__(1, -1),
    ),
    "equal, of another type": (pairs, lambda x: x.__setitem__(5, ("image 5", 5.0))),
    "dicts": (
        lambda: [{"path": f"image {i}", "label": i} for i in range(60_000)],
        lambda x: x[-1].update(label=-1),
    ),
    "a dict": (
        lambda: {f"image {i}": i for i in range(60_000)},
        lambda x: x.update({"image 9": 0}),
    ),
    "order of a dict": (
        lambda: {f"image {i}": i for i in range(60_000)},
        lambda x: x.update({"image 9": x.pop("image 9")}),
    ),
    "lists in tuples": (
        lambda: [(f"image {i}", [i, i + 1]) for i in range(60_000)],
        lambda x: x[7][1].append(3),
    ),
    "moved from one list to the next": (
        lambda: [[i, i] for i in range(60_000)],
        lambda x: x[1].insert(0, x[0].pop()),
    ),
    "a set": (lambda: {f"image {i}" for i in range(120_000)}, lambda x: x.remove("image 77")),
    "numbers of numpy": (
        lambda: [(f"image {i}", np.int64(i)) for i in range(60_000)],
        lambda x: x.__setitem__(3, ("image 3", np.int32(3))),
    ),
    "paths": (
        lambda: tuple([Path(f"image {i}"), i] for i in range(60_000)),
        lambda x: x[-1].__setitem__(0, Path("x")),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_any_change_is_noticed(name):
    make, change = CHANGES[name]
    value = make()
    data = Holder(summed, samples=value, again=[value])
    plain = PlainParts(candidates_in([data]))
    assert [id(part) for part in plain.parts] == [id(value)]
    assert plain.is_unchanged(candidates_in([data]))
    change(value)
    assert not plain.is_unchanged(candidates_in([data]))


class Mine(str):
    pass


@pytest.mark.parametrize(
    "value",
    [
        [(Mine(i), i) for i in range(60_000)],
        [*pairs(), ("an array", np.zeros(3))],
        [*pairs(), object()],
        [*pairs(), lambda: 0],
        list(range(90_000)),
    ],
    ids=["own class", "array", "object", "function", "few"],
)  # fmt: skip
def test_what_is_not_plain_or_not_long_travels_anew_each_time(value):
    assert PlainParts(candidates_in(Holder(summed, samples=value))).parts == []


def test_a_list_within_itself_is_not_plain():
    value = pairs()
    value.append(value)
    assert PlainParts(candidates_in([value])).parts == []


def rows_are_shared(data, index):
    data.first[0] = "changed"
    return [data.rows[0][0], data.rows[1][0], len(data.rows), os.getppid() == data.server]


def test_a_list_whose_rows_are_known_elsewhere_too_travels_whole():
    data = Holder(rows_are_shared, rows=[[f"image {i}", i] for i in range(60_000)], server=0)
    data.first = data.rows[0]
    list(NumpyLoader([0], num_workers=1))
    data.server = server._server.pid
    loader = NumpyLoader(data, None, num_workers=1)
    for _ in range(2):
        assert next(iter(loader)) == ["changed", "image 1", 60_000, True]
        assert held(loader) is None


class Left(Holder):
    def __getstate__(self):
        return {**vars(self), "samples": None}


def test_what_a_dataset_leaves_at_home_is_not_sent():
    assert candidates_in([Left(summed, samples=pairs())]) == []


def test_a_worker_that_changes_its_list_changes_nobody_elses():
    def look(data, index):
        data.samples[0] = "changed"
        return [data.samples[0], data.samples[1][0]]

    data = Holder(look, samples=pairs())
    loader = NumpyLoader(data, None, num_workers=2)
    for _ in range(2):
        assert list(loader) == [["changed", "image 1"]] * 2
    data.look = lambda data, index: data.samples[0][0]
    assert list(loader) == ["image 0"] * 2


# Objects that answer for any name.


class Plainly(Dataset):
    def __init__(self, scale=1):
        self.scale = scale

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return np.float32(index) * self.scale

    def __setstate__(self, state):
        vars(self).update(state)


class Wraps(Dataset):
    def __init__(self, inner, factor):
        self.inner, self.factor = inner, factor

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        return self.inner[index] * self.factor

    def __getattr__(self, name):
        return getattr(self.inner, name)


class AnswersAll(Wraps):
    def __getattr__(self, name):
        if name == "__getitems__":  # torch calls it
            raise AttributeError(name)
        return lambda *arguments: None


class AsksItsDict(Wraps):
    def __getattr__(self, name):
        if name == "__getitems__":
            raise AttributeError(name)
        return vars(self.__dict__["inner"])[name]


class PassesAllOn(Wraps):
    def __getattribute__(self, name):
        inner = object.__getattribute__(self, "inner")
        if name in ("factor", "inner", "__class__", "__dict__"):
            return object.__getattribute__(self, name)
        return getattr(inner, name)


class Slotted:
    __slots__ = ("factor", "inner")
    __init__, __len__, __getitem__ = Wraps.__init__, Wraps.__len__, Wraps.__getitem__
    __getattr__ = Wraps.__getattr__


class Listed(list):
    __getattr__ = Wraps.__getattr__
    inner = None

    def __init__(self, inner, factor):
        super().__init__(inner[i] * factor for i in range(4))
        self.inner = inner


class AttributesOfItems(dict):
    def __getattr__(self, name):
        return 0 if name == "__getitems__" else dict.__getitem__(self, name)

    def __init__(self, inner, factor):
        super().__init__(inner=inner, factor=factor)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if isinstance(index, str):
            return dict.__getitem__(self, index)
        return self.inner[index] * self.factor


WRAPPERS = [Wraps, AnswersAll, AsksItsDict, PassesAllOn, Slotted, Listed, AttributesOfItems]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_that_answers_for_any_name(wrapper):
    def collate(rows):
        return np.stack(rows) + as_function.factor

    as_function = Wraps(wrapper(Plainly(), 2), 3)
    data = wrapper(wrapper(Plainly(), 2), 3)
    batches = list(NumpyLoader(data, 2, num_workers=1, collate_fn=collate))
    assert [batch.tolist() for batch in batches] == [[3, 9], [15, 21]]


def test_a_batch_and_indices_that_answer_for_any_name():
    def collate(rows):
        return Wraps(Plainly(), rows[0])

    data = Holder(lambda data, index: index.scale)
    index = Forwards(Plainly(7))
    [batch] = NumpyLoader(data, sampler=[index], batch_size=1, num_workers=1, collate_fn=collate)
    assert type(batch) is Wraps
    assert batch.factor == 7


class Forwards:
    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)


# What cannot be unpickled.


class FailsThere(Plainly):
    def __setstate__(self, state):
        raise KeyError("of Fails\nThere")


class TakesTwo(Exception):
    def __init__(self, one, two):
        super().__init__(one)


class BecomesAnother(Plainly):
    def __reduce__(self):
        return list, ([1, 2],)


UNFIT = (
    "NumpyLoader: {} must be able to unpickle what it is sent, and {} fails there ({}); mend the "
    "__reduce__ or __setstate__ of its class, or use num_workers=0"
)
KEY_ERROR = "KeyError: 'of Fails\\nThere'"


def steps(worker_id, fails=None):
    """A worker_init_fn."""


@pytest.mark.parametrize(
    ("arguments", "where", "failure"),
    [
        (lambda: {"dataset": FailsThere()}, "dataset, a FailsThere,", KEY_ERROR),
        (lambda: {"dataset": Wraps({"a": [0, FailsThere()]}, 1)},
         "dataset.inner['a'][1], a FailsThere,", KEY_ERROR),
        (lambda: {"dataset": Holder(summed, error=TakesTwo(1, 2))}, "dataset.error, a TakesTwo,",
         "TypeError: TakesTwo.__init__() missing 1 required positional argument: 'two'"),
        (lambda: {"dataset": Plainly(), "collate_fn": FailsThere().__len__},
         "collate_fn.__self__, a FailsThere,", KEY_ERROR),
        (lambda: {"dataset": Plainly(),
                  "worker_init_fn": (lambda fails: lambda worker: fails)(FailsThere())},
         "fails of worker_init_fn, a FailsThere,", KEY_ERROR),
    ],
    ids=["dataset", "inner", "exception", "collate_fn", "worker_init_fn"],
)  # fmt: skip
@pytest.mark.parametrize(("workers", "persistent"), [(1, False), slow(2, True)])
def test_what_a_worker_cannot_unpickle_is_named(arguments, where, failure, workers, persistent):
    loader = NumpyLoader(
        batch_size=2, num_workers=workers, persistent_workers=persistent, **arguments()
    )
    with pytest.raises(WorkerError) as error:
        next(iter(loader))
    assert str(error.value) == UNFIT.format("a worker", where, failure)
    assert error.value.__cause__ is None


def test_a_module_that_only_the_trainer_has(monkeypatch):
    module = types.ModuleType("made_here")
    exec("class Here:\n    pass", vars(module))
    monkeypatch.setitem(sys.modules, "made_here", module)
    with pytest.raises(WorkerError) as error:
        next(iter(NumpyLoader(Holder(summed, here=module.Here()), 2, num_workers=1)))
    what = "dataset or collate_fn or worker_init_fn"
    failure = "ModuleNotFoundError: No module named 'made_here'"
    assert str(error.value) == UNFIT.format("a worker", what, failure)


def test_indices_that_a_worker_cannot_unpickle_and_the_next_batch_comes():
    rows = [[0, 1], [2, FailsThere()], [3]]
    epoch = iter(NumpyLoader(Plainly(), batch_sampler=rows, num_workers=1))
    assert next(epoch).tolist() == [0, 1]
    with pytest.raises(WorkerError) as error:
        next(epoch)
    what = "what the sampler yields[1], a FailsThere,"
    assert str(error.value) == UNFIT.format("a worker", what, KEY_ERROR)
    assert next(epoch).tolist() == [3]


def test_a_batch_that_the_trainer_cannot_unpickle_and_the_next_one_comes():
    def collate(rows):
        return FailsThere() if 0 in rows else sum(rows)

    epoch = iter(NumpyLoader(Plainly(), 2, num_workers=1, collate_fn=collate))
    with pytest.raises(WorkerError) as error:
        next(epoch)
    assert str(error.value) == UNFIT.format("the trainer", "a batch of worker 0", KEY_ERROR)
    assert next(epoch) == 5


def test_a_dataset_that_becomes_another_thing_is_refused():
    with pytest.raises(WorkerError) as error:
        next(iter(NumpyLoader(BecomesAnother(), 2, num_workers=1)))
    assert str(error.value) == (
        "NumpyLoader: a dataset must be unpickled as what it is, and a "
        "BecomesAnother is a list in the worker; fix its __reduce__, or use "
        "num_workers=0"
    )


class Node:
    def __init__(self, rest):
        self.rest = rest


def test_what_is_nested_too_deeply_is_named_in_one_short_sentence():
    chain = None
    for _ in range(200_000):
        chain = Node(chain)
    try:
        with pytest.raises(WorkerError) as error:
            iter(NumpyLoader(Holder(summed, chain=chain), 2, num_workers=1))
    finally:
        while chain is not None:  # or its end would be as deep
            chain = chain.rest
    assert str(error.value).startswith(
        "NumpyLoader: what goes to a worker must be picklable, and dataset.chain.rest.rest"
    )
    assert "recursion" in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("name", [slow("spawn"), "fork"])
@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning", "ignore:.*fork:DeprecationWarning")
def test_a_wrapper_with_torchs_own_ways_to_start_workers(name):
    data = PassesAllOn(Plainly(), 2) if name == "fork" else Holder(look=itself)
    [batch] = NumpyLoader(data, 4, sampler=[0, 1], num_workers=1, multiprocessing_context=name)
    assert batch.tolist() == ([0, 2] if name == "fork" else [0, 1])


def itself(data, index):
    return index


# The server.

SCRIPT = """
    import os, sys, time
    from feedax.data import NumpyLoader
    class Mine:
        samples = None
        def __len__(self):
            return 64
        def __getitem__(self, index):
            return index
    data = Mine()
    data.samples = [(f"image {i}", i) for i in range(60_000)]
    epoch = iter(NumpyLoader(data, num_workers=2, batch_size=1))
    next(epoch)
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [slow(signal.SIGKILL), signal.SIGTERM])
def test_a_trainer_that_is_killed_leaves_nothing_in_the_temporary_folder(
    tmp_path, monkeypatch, number
):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    trainer = start_script(tmp_path, SCRIPT)
    assert trainer.stdout.readline() == "ready\n"
    assert list(folder.iterdir()) == []
    trainer.send_signal(number)
    output, errors = trainer.communicate(timeout=120)
    assert left_over(trainer.pid) == []
    assert (output, errors) == ("", "")
    assert list(folder.iterdir()) == []


def test_a_server_that_cannot_import_what_workers_need(tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text("raise ImportError('broken')")
    done = run_script(
        tmp_path,
        f"""
        import sys
        from feedax.data import NumpyLoader
        sys.path.insert(0, {str(broken)!r})
        for _ in range(2):
            try:
                iter(NumpyLoader(range(4), num_workers=1))
            except Exception as error:
                print(type(error).__name__, error)
        """,
    )
    sentence = (
        "WorkerError NumpyLoader: the server that workers are forked from must import feedax.data "
        "and live, and it has ended; see that a plain `python -c 'import feedax.data'` works in "
        "this environment, and that there is memory for it"
    )
    assert done.stdout.splitlines() == [sentence] * 2
    assert "ImportError: broken" in done.stderr


def test_a_server_that_was_killed_is_started_anew():
    assert len(list(NumpyLoader(range(4), num_workers=1))) == 4
    killed = server._server.pid
    os.kill(killed, signal.SIGKILL)
    os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT)
    assert len(list(NumpyLoader(range(4), num_workers=1))) == 4
    assert server._server.pid != killed


def test_a_class_of_a_function_is_what_it_is_in_a_worker():
    class Local(Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return index

    assert next(iter(NumpyLoader(Local(), batch_size=2, num_workers=1))).tolist() == [0, 1]


def test_a_workers_long_sentence_arrives_whole():
    """torch sends it as the end of a traceback; it is no shorter than without a worker."""
    examples = [{f"field number {i}": 0 for i in range(n)} for n in (30, 29)]

    def said(workers):
        with pytest.raises(ExampleError) as error:
            next(iter(NumpyLoader(examples, batch_size=2, num_workers=workers)))
        return str(error.value)

    assert said(1) == said(0)
    assert said(1).startswith("numpy_collate: an example must have keys that all examples")

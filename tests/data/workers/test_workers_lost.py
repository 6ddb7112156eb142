"""Workers that die, hang, or lose their trainer."""

import os
import signal
import sys
import time

import numpy as np
import pytest
from helpers import left_over, processes_of_session, slow, start_script
from torch.utils.data import Dataset, get_worker_info

from feedax.data import NumpyLoader
from feedax.errors import WorkerError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are torch's own there")


class Dies(Dataset):
    """Example 6 kills its worker, as long as a file is there."""

    def __init__(self, flag, how):
        self.flag = flag
        self.how = how

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index == 6 and self.flag.exists():
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(3)
        return np.full(5000, index)


LOST = (
    "NumpyLoader: worker {} must live as long as it has work, and it {} while loading example {}; "
    "look at what that example needs (memory, most often), or use fewer workers or smaller batches"
)


@pytest.mark.parametrize(
    ("how", "end", "persistent"),
    [
        ("killed", "was killed by SIGKILL", False),
        slow("killed", "was killed by SIGKILL", True),
        slow("exits", "ended with exit code 3", False),
        ("exits", "ended with exit code 3", True),
    ],
)
def test_a_worker_that_dies_is_named_and_the_next_epoch_works(tmp_path, persistent, how, end):
    flag = tmp_path / "flag"
    flag.touch()
    loader = NumpyLoader(
        Dies(flag, how), 4, num_workers=2, prefetch_factor=1, persistent_workers=persistent
    )
    for _ in range(2):
        epoch = iter(loader)
        with pytest.raises(WorkerError) as error:
            list(epoch)
        assert str(error.value) == LOST.format(1, end, 6)
    flag.unlink()
    assert [batch[:, 0].tolist() for batch in loader] == np.arange(12).reshape(3, 4).tolist()


def megabytes(rows):
    return b"x" * 30_000_000


def test_a_worker_that_is_killed_while_it_sends_is_named():
    loader = NumpyLoader(range(8), 4, num_workers=1, collate_fn=megabytes, persistent_workers=True)
    epoch = iter(loader)
    [worker] = epoch._workers
    channel = epoch._context.channels[0]
    while channel.ready_since is None:  # its first word; then it sends a batch, and nobody listens
        channel.receive()
    assert channel._connection.poll(120)
    time.sleep(0.1)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerError) as error:
        next(epoch)
    assert str(error.value) == LOST.format(0, "was killed by SIGKILL", 3)
    assert [len(batch) for batch in loader] == [30_000_000] * 2


class Slow(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 5 and get_worker_info() is not None:
            time.sleep(60)
        return index


class SlowTogether(Slow):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


@pytest.mark.parametrize(
    ("dataset", "doing"),
    [slow(Slow(), "example 5"), (SlowTogether(), "examples [4, 5, 6, 7]")],
    ids=["one", "together"],
)
def test_a_worker_that_is_stuck_past_the_timeout_is_named(dataset, doing):
    list(NumpyLoader(range(2), num_workers=1))  # the server takes its time, once
    loader = NumpyLoader(dataset, 4, num_workers=2, timeout=3, prefetch_factor=1)
    epoch = iter(loader)
    assert next(epoch).tolist() == [0, 1, 2, 3]
    with pytest.raises(WorkerError) as error:
        next(epoch)
    assert str(error.value) == (
        "NumpyLoader: a batch must come within timeout=3 seconds, and worker 1 is still loading "
        f"{doing}; see what keeps it, or raise the timeout"
    )
    for worker in epoch._workers:
        worker.kill()


SCRIPT = """
    import os, sys, threading, time, warnings
    import numpy as np
    from feedax.data import NumpyLoader

    class Mine:
        def __len__(self):
            return 64
        def __getitem__(self, index):
            if index == 8:
                time.sleep(600)
            while index == 10:
                pass
            return np.full(9000, index)

    if sys.argv[1] == "forks":
        warnings.simplefilter("ignore")  # of os.fork, by whoever
        kept = NumpyLoader(Mine(), sampler=range(6), num_workers=1, persistent_workers=True)
        epoch = iter(kept)
        next(epoch)
        if (child := os.fork()) == 0:
            epoch = kept._iterator = None
            own = [b.tolist() for b in NumpyLoader(range(4), 2, num_workers=1)]
            print(own, flush=True)
            os._exit(own != [[0, 1], [2, 3]])
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        print(len(list(epoch)), len(list(kept)))
        sys.exit()

    loader = NumpyLoader(Mine(), sampler=[0, 1, 8, 10, 0, 1], num_workers=2, batch_size=1)
    epoch = iter(loader)
    next(epoch), next(epoch)
    time.sleep(0.3)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_nothing_survives_a_trainer_that_is_killed(tmp_path):
    shared = set(os.listdir("/dev/shm"))
    trainer = start_script(tmp_path, SCRIPT, "waits")
    assert trainer.stdout.readline() == "ready\n"
    # The trainer, its fork server, the resource tracker, two workers that are at work.
    assert len(processes_of_session(trainer.pid)) == 5
    trainer.kill()
    output, errors = trainer.communicate(timeout=120)  # when nobody has its pipes any more
    assert left_over(trainer.pid) == []
    assert (output, errors) == ("", "")
    assert set(os.listdir("/dev/shm")) <= shared


@pytest.mark.slow
def test_a_forked_child_of_the_trainer_has_workers_of_its_own(tmp_path):
    trainer = start_script(tmp_path, SCRIPT, "forks")
    output, errors = trainer.communicate(timeout=120)
    assert (output, errors) == ("[[0, 1], [2, 3]]\n0\n5 6\n", "")
    assert left_over(trainer.pid) == []

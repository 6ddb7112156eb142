"""What the library says to a script, the command line says in the words of its flags."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import run_command
from PIL import Image

import feedax
from feedax.cli import REMEDIES, in_flags
from feedax.errors import FeedaxError

SOURCE = Path(feedax.__file__).parent
DATASETS = """
import random
import numpy as np
from torch.utils.data import Dataset, IterableDataset

class Stream(IterableDataset):
    def __iter__(self):
        return iter([(np.zeros(4, np.float32), 1)] * 8)

class Examples(Dataset):
    def __init__(self, label=lambda i: i % 2, kept=None, changes=lambda: 0):
        self.label, self.kept, self.changes = label, kept, changes
    def __len__(self):
        return 40
    def __getitem__(self, i):
        return np.full(4, i + self.changes(), np.float32), self.label(i)

def plain(train): return Examples()
def stream(train): return Stream()
def noisy(train): return Examples(changes=random.random)
def uneven(train): return Examples(lambda i: np.zeros(1 + (i == 20), np.int64))
def one_hot(train): return Examples(lambda i: np.eye(2, dtype=np.float32)[i % 2])
def huge(train): return Examples(lambda i: 2**40)
def objects(train): return Examples(lambda i: object())
def three(train): return Examples(lambda i: i % 3)
def held(train): return Examples(kept=(i for i in range(3)))
"""


def strings(path: Path) -> set[str]:
    """The texts of a module, docstrings left out."""
    tree = ast.parse(path.read_text())
    documents = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in documents
    }


LIBRARY = {
    text
    for path in SOURCE.rglob("*.py")
    if path.relative_to(SOURCE).parts[0] != "cli"
    for text in strings(path)
}


@pytest.mark.parametrize("remedy", sorted(REMEDIES))
def test_every_remedy_is_one_that_the_library_gives(remedy):
    where = "free some space or " if remedy.startswith("free some space or ") else ""
    assert remedy.removeprefix(where) in LIBRARY
    error = FeedaxError(who="a", rule="b", found="c", remedy=remedy)
    assert in_flags(error) == f"a: b, and c; {REMEDIES[remedy]}"
    # A worker sends the sentence alone.
    assert in_flags(FeedaxError(str(error))) == in_flags(error)


def test_no_message_of_the_library_names_a_flag():
    assert [text for text in LIBRARY if re.search(r"(^|[^-\w])--[a-z]", text)] == []


def test_arguments_become_flags_in_the_rule_and_the_remedy_alone():
    error = FeedaxError(
        who="a",
        rule="num_workers=2 of /data/plan=x/cache=True and of /a-steps=500 must be",
        found="a file says cache=True",
        remedy="give root=DIR, cache=True, plan='streamed' or colour=3",
    )
    assert in_flags(error) == (
        "a: --num-workers 2 of /data/plan=x/cache=True and of /a-steps=500 must be, and a file "
        "says cache=True; "
        "give --root DIR, --cache, --plan streamed or colour=3"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "plan --dataset data:stream --cache",
            "NumpyLoader: --cache keeps examples by their indices, and an IterableDataset has "
            "none; leave it out",
        ),
        (
            "train --dataset data:plain --plan resident",
            "NumpyLoader: --plan resident needs a dataset whose batches can be gathered from "
            "arrays, and Examples may run any Python for an example; leave it out, or give "
            "--plan streamed",
        ),
        (
            "plan --dataset npz:some.npz --root .",
            "datasets: --root DIR is for datasets that are unpacked or downloaded, and "
            "'npz:some.npz' says itself where to look; leave it out",
        ),
        (
            "train --dataset data:plain --batch-size 99 --drop-last",
            "feedax: with --drop-last the training set must fill a batch, and that of data:plain "
            "has fewer than 99 examples; lower --batch-size, or leave --drop-last out",
        ),
        (
            "train --dataset data:stream --batch-size 99 --drop-last --layers 4 2",
            "fit: train must yield a batch in every epoch, and it yielded none in epoch 0; see "
            "that the dataset is not empty, and fills a batch if there is --drop-last",
        ),
        (
            "train --dataset data:noisy --cache --layers 4 2",
            "NumpyLoader: with --cache an example must be the same each time it is loaded, and "
            "example N of Examples has changed; leave --cache out if the dataset is random, or "
            "start again if it was edited",
        ),
        (
            "train --dataset data:uneven --layers 4 2",
            "numpy_collate: field [1] must have a shape that all examples of a batch share, and it "
            "is (1,) in example 0 but (2,) in example 20; make them equal in the dataset (resize, "
            "crop or pad)",
        ),
        (
            "train --dataset data:uneven --layers 4 2 --num-workers 1",
            "numpy_collate: field [1] must have a shape that all examples of a batch share, and it "
            "is (1,) in example 0 but (2,) in example 20; make them equal in the dataset (resize, "
            "crop or pad)",
        ),
        (
            "train --dataset data:one_hot --layers 4 2",
            "tutorial_loss: an example must have an integer label and a vector of predictions, and "
            "its target is float32[2] and its prediction float32[2]; let the dataset give the "
            "label itself, argmax() of a one-hot target",
        ),
        (
            "train --dataset data:huge --layers 4 2",
            "fit: integers must fit into the int32 that the device holds, and a batch has "
            "1099511627776; make them smaller, or set JAX_ENABLE_X64=1",
        ),
        (
            "train --dataset data:objects --layers 4 2",
            "numpy_collate: field [1] must be made of arrays, tensors, images, numbers and text, "
            "and example 0 has a object there; convert it in the dataset",
        ),
        (
            "train --dataset data:three --layers 4 2",
            "fit: labels must lie in 0 to 1, for the 2 classes that the model predicts, and "
            "example 2 of a batch has label 2; end --layers with the number of classes, "
            "or mend the labels",
        ),
        (
            "train --dataset data:held --layers 4 2 --num-workers 1",
            "NumpyLoader: what goes to a worker must be picklable, and dataset.kept, a "
            "generator, is not (cannot pickle 'generator' object); make it in the dataset's "
            "__getitem__ or in worker_init_fn, leave it out in __getstate__, or use "
            "--num-workers 0",
        ),
        (
            "train --dataset data:stream --layers 4 2 --schedule cosine",
            "schedule: 'cosine' must know how long the run is, and steps is None; give --steps N, "
            "those of the whole run",
        ),
        (
            "train --dataset imagefolder:images",
            "image_folder: images must be of one size where the transform only flattens them, and "
            "images/a/0.png is 4 x 4 and images/a/1.png is 5 x 5 pixels; resize the files, or give "
            "--dataset package.module:factory, a function that resizes them",
        ),
        (
            "train --coordinator node1 --processes 2 --process 0",
            "processes: --coordinator HOST:PORT must be where process 0 listens, and it is "
            "'node1'; choose a free port there, for example node1:29500",
        ),
        (
            "train --coordinator node1:29500 --processes 2 --process 2",
            "processes: --process N must be from 0 to 1 with 2 processes, and it is 2; number them "
            "from 0",
        ),
    ],
)
def test_the_command_line_names_flags(words, sentence, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"data_{tmp_path.name}".replace("-", "_")
    Path(f"{name}.py").write_text(DATASETS)
    np.savez("some.npz", x=np.zeros((4, 4), np.float32), y=np.zeros(4, np.int64))
    folder = Path("images", "a")
    folder.mkdir(parents=True)
    for i in range(2):
        Image.new("L", (4 + i, 4 + i)).save(folder / f"{i}.png")
    words = words.replace("data:", f"{name}:").split()
    done = run_command(capfd, words)
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1].replace(f"{tmp_path}/", "").replace(name, "data")
    said = re.sub(r"example \d+ of Examples", "example N of Examples", said)  # any of them
    assert said == f"feedax {words[0]}: {sentence}"

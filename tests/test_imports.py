"""The layout holds: who may import whom, and what an import costs."""

import ast
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import slow
from PIL import Image

import feedax

SOURCE = Path(feedax.__file__).parent
ORDER = [
    "errors",
    "machine",
    "presets",
    "files",
    "tree",
    "pictures",
    "random_states",
    "web",
    "augment",
    "data",
    "datasets",
    "storage",
    "feed",
    "train",
    "predicting",
    "report",
    "loggers",
    "show",
    "cli",
]
"""Each may import those before it, and itself."""


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def world(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the order"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    if world(path) in ("__init__", "__main__"):
        return  # the doors of the package: one looks names up, the other starts the command line
    allowed = ORDER[: ORDER.index(world(path)) + 1]
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "feedax" and len(parts) > 1 and parts[1] != "__version__":
            assert parts[1] in allowed, f"{path} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_each_world_imports_its_own_framework(path: Path) -> None:
    forbidden = {
        "errors": {"jax", "torch", "torchvision", "numpy"},
        "presets": {"jax", "torch", "torchvision", "numpy"},
        "machine": {"jax", "torch", "torchvision", "numpy"},
        "files": {"jax", "torch", "torchvision", "numpy"},
        "tree": {"jax", "torch", "torchvision"},
        "pictures": {"jax", "torch", "torchvision"},
        "random_states": {"jax", "torch", "torchvision"},
        "web": {"jax", "torch", "torchvision", "numpy"},
        "augment": {"torch", "torchvision", "scipy"},
        "data": {"jax", "optax"},
        "datasets": {"jax", "optax"},
        "storage": {"torch", "torchvision"},
        "feed": {"torch", "torchvision"},
        "train": {"torch", "torchvision"},
        "predicting": {"jax", "torch", "torchvision"},
    }.get(world(path), set())
    assert not {name.split(".")[0] for name in imported(path)} & forbidden


OTHERS_PRIVATE = {
    "data/array_form.py": {"leaf._base", "leaf._version"},
    "data/known_datasets.py": {"dataset._indices"},
    "data/workers/pickling.py": {
        "ForkingPickler._extra_reducers",
        "cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS",
        "cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID",
    },
    "data/workers/server.py": {
        "forkserver._forkserver",
        "forkserver._forkserver._inherited_fds",
        "process._args",
        "resource_tracker._resource_tracker",
        "resource_tracker._resource_tracker._fd",
        "spawn._main",
        "util._args_from_interpreter_flags",
    },
}
"""Names of Python's, torch's and JAX's that begin with an underscore, where no public one serves;
the modules say why."""


def private_reads(tree: ast.Module) -> set[str]:
    """What a module reads of others' private names: not of `self`, and defined nowhere in it."""
    own = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls")
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
    public = {"_replace", "_asdict", "_fields", "_make", "_exit"}  # of named tuples, and of os
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            name, holder = node.attr, ast.unparse(node.value)
            if not (name.startswith("__") or holder in ("self", "cls") or name in own | public):
                found.add(f"{holder}.{name}")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("feedax"):
            names = (alias.name for alias in node.names)
            found |= {
                f"{node.module}.{name}"
                for name in names
                if name.startswith("_") and not name.startswith("__")
            }
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_no_module_reads_anothers_private_names(path: Path) -> None:
    allowed = OTHERS_PRIVATE.get(str(path.relative_to(SOURCE)), set())
    assert private_reads(ast.parse(path.read_text())) == allowed


def imports_at_the_top(path: Path) -> set[str]:
    """The modules of the package that are loaded with a module."""
    found = set()
    pending: list[ast.stmt] = list(ast.parse(path.read_text()).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            pending += [*node.body, *node.orelse]
        elif isinstance(node, ast.Try):
            pending += [*node.body, *node.orelse, *(n for h in node.handlers for n in h.body)]
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in NAMES else str(node.module))
    return found & set(NAMES)


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


NAMES = {dotted(path): path for path in modules()}


def folder(name: str) -> str:
    is_folder = NAMES[name].name == "__init__.py"
    return name if is_folder or name.count(".") == 1 else name.rpartition(".")[0]


def assert_no_circle(graph: dict[str, set[str]]) -> None:
    order = graphlib.TopologicalSorter(graph)
    order.prepare()  # raises CycleError, which names the circle


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert_no_circle({name: imports_at_the_top(path) for name, path in NAMES.items()})


def test_no_folders_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for name, path in NAMES.items():
        others = {folder(other) for other in imports_at_the_top(path)} - {folder(name)}
        graph.setdefault(folder(name), set()).update(others)
    assert_no_circle(graph)


DELAYED = {
    "cli/compilation_cache.py": {"jax"},
    "predicting.py": {"scipy"},  # a quarter of a second, which training starts without
    "cli/predict.py": {"feedax.report.figures"},  # matplotlib
    "cli/show.py": {"feedax.cli.compilation_cache", "feedax.cli.network"},  # JAX
    "cli/loggers.py": {"feedax.report"},  # its diagrams: matplotlib
    "data/collate.py": {"ml_dtypes"},
    "loggers/logger.py": {"feedax.report.figures"},  # matplotlib
    "loggers/mlflow.py": {"mlflow"},
    "loggers/tensorboard.py": {
        "tensorboard.backend.event_processing.event_file_loader",
        "tensorboard.compat.proto",
        "tensorboard.plugins.hparams.summary_v2",
        "tensorboard.summary.writer.record_writer",
    },
    "loggers/wandb.py": {"requests.utils", "wandb", "wandb.proto.wandb_internal_pb2"},
    "report/run_folder.py": {"feedax.report.figures", "feedax.storage.params_file"},  # JAX too
    "report/sweep_folder.py": {
        "feedax.report.figures",
        "feedax.train.history",
        "feedax.train.networks",
    },  # JAX too
    "show/networks.py": {"feedax.predicting"},  # SciPy
    "train/progress.py": {"IPython.display", "rich"},
    "train/adapters.py": {"flax", "flax.core", "flax.errors", "flax.linen"},
}
"""Modules that import within functions, and the heavy modules that they put off."""


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_functions_import_only_what_is_heavy(path: Path) -> None:
    found = {
        alias.name if isinstance(node, ast.Import) else str(node.module)
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert found == DELAYED.get(str(path.relative_to(SOURCE)), set())


def test_no_module_is_longer_than_600_lines() -> None:
    assert [str(p) for p in modules() if len(p.read_text().splitlines()) > 600] == []


def test_import_feedax_is_cheap() -> None:
    heavy = "{'jax', 'torch', 'torchvision', 'numpy', 'optax', 'matplotlib', 'rich', 'tyro'}"
    print_loaded = f"import sys, feedax; print(sorted({heavy} & set(sys.modules)))"
    assert run(print_loaded) == "[]\n"


@pytest.mark.parametrize("module", [slow("feedax.data"), "feedax.datasets"])
def test_pytorchs_side_never_loads_jax(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules, 'jax' in sys.modules)"
    assert run(code) == "True False\n"


def test_jaxs_side_trains_without_loading_torch() -> None:
    code = """
import sys
import jax.numpy as jnp, numpy as np
import feedax

x = np.eye(4, dtype=np.float32)
w, history = feedax.fit(lambda w, x: w @ x, jnp.zeros((4, 4)), [[x, np.arange(4)]], epochs=2)
print(len(history), "torch" in sys.modules)
"""
    assert run(code) == "2 False\n"


def test_public_names_are_what_the_package_gives() -> None:
    assert feedax.__all__ == [*sorted(set(feedax.__all__) - {"__version__"}), "__version__"]
    for name in feedax.__all__:
        assert getattr(feedax, name) is not None
    assert dir(feedax) == sorted(feedax.__all__)
    # The names that type checkers see are the same ones.
    checked = ast.parse((SOURCE / "__init__.py").read_text())
    block = next(node for node in checked.body if isinstance(node, ast.If))
    seen = {alias.asname for node in block.body for alias in node.names} - {None}
    for module in (node.module for node in block.body if node.names[0].name == "*"):
        seen |= set(importlib.import_module(module).__all__)
    assert seen == set(feedax.__all__) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'feedax' has no attribute 'predicts'$"):
        _ = feedax.predicts


def test_version_is_the_projects() -> None:
    from importlib.metadata import version

    assert feedax.__version__ == version("feedax")


def test_every_public_function_is_documented() -> None:
    undocumented = [name for name in feedax.__all__ if not getattr(feedax, name).__doc__]
    assert undocumented in ([], ["__version__"])


def loaded_by(command: list[str]) -> set[str]:
    """Which of the heavy packages a command has loaded when it is done."""
    heavy = {"jax", "optax", "torch", "torchvision", "matplotlib", "rich"}
    code = f"""
import sys
from feedax.cli import main
assert main({command!r}) == 0
print(*sorted({heavy!r} & set(sys.modules)))
"""
    return set(run(code).splitlines()[-1].split())


def test_plan_does_without_jax_and_torchvision() -> None:
    assert loaded_by(["plan"]) == {"torch"}


def test_training_on_arrays_never_loads_torchvision(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((8, 3), np.float32), y=np.arange(8) % 2)
    train = ["train", "--steps", "1", "--dataset", f"npz:{tmp_path / 'a.npz'}"]
    # The curves are drawn at the end.
    found = loaded_by([*train, "--out", str(tmp_path / "run")])
    assert found == {"jax", "matplotlib", "optax", "torch"}


def test_a_loader_and_its_workers_never_load_torchvision_for_what_is_not_from_it() -> None:
    code = """
import sys
import feedax

class Loaded:
    def __len__(self):
        return 1
    def __getitem__(self, index):
        return ",".join({"torchvision", "jax", "matplotlib"} & set(sys.modules))

print(list(feedax.NumpyLoader(Loaded(), None, num_workers=1)), [Loaded()[0]])
"""
    assert run(code) == "[''] ['']\n"


def test_predict_does_without_torch(tmp_path: Path) -> None:
    import jax

    from feedax.report.run_folder import RunFolder

    layers = (784, 10)
    settings = {"dataset": "mnist", "layers": layers, "image_shape": (28, 28), "class_names": None}
    settings["arguments"] = []
    RunFolder.create(settings, path=tmp_path / "run", name="mnist").save_params(
        feedax.init_mlp(layers, jax.random.key(0))
    )
    image = tmp_path / "image.png"
    Image.linear_gradient("L").resize((28, 28)).save(image)
    assert loaded_by(["predict", str(tmp_path / "run"), str(image)]) == {"jax", "optax"}

"""What is released: the archives' contents, and a wheel that works outside of the clone."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import feedax
from feedax.datasets import mnist

ROOT = Path(__file__).parent.parent
MEGABYTE = 2**20


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    return next(dist.glob("*.whl"))


def test_the_wheel_holds_the_package_its_data_and_its_licences_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"feedax-{feedax.__version__}.dist-info"
    source = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    mnists = {"feedax/datasets/shipped_mnist/README.md", "feedax/py.typed"}
    assert mnists < source
    assert len([name for name in source if name.endswith("ubyte.gz")]) == 4
    assert names == source | {
        f"{info}/{name}"
        for name in (
            "METADATA",
            "WHEEL",
            "RECORD",
            "entry_points.txt",
            "licenses/LICENSE",
            "licenses/src/feedax/datasets/shipped_mnist/README.md",
        )
    }
    assert wheel.stat().st_size < 12 * MEGABYTE


def test_the_source_archive_can_be_built_and_tested(dist):
    archive = next(dist.glob("*.tar.gz"))
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    for name in ("Makefile", "scripts/install.py", "tests/test_table.py", "docs/design.md"):
        assert name in names
    assert archive.stat().st_size < 13 * MEGABYTE


def test_the_version_has_one_place(wheel):
    assert wheel.name.split("-")[1] == feedax.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == feedax.__version__
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == feedax.__version__


def test_the_workflow_runs_targets_of_the_makefile_on_the_pythons_that_are_supported():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert commands == ["make check test PYTHON=python", "make dist PYTHON=python"]
    for command in commands:
        assert set(command.split()[1:-1]) <= targets
    pythons = jobs["test"]["strategy"]["matrix"]["python"]
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    assert [c.rpartition(" ")[2] for c in classifiers if "Python :: 3." in c] == pythons
    assert pythons[0] == "3.11"


def test_the_site_is_published_by_the_target_that_builds_it():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "site.yml").read_text())
    steps = workflow["jobs"]["site"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["make docs PYTHON=python"]
    [folder] = [step["with"]["path"] for step in steps if "pages-artifact" in step.get("uses", "")]
    assert folder == "docs/_build/html"
    assert f"builds {folder}:" in (ROOT / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize(
    "alone", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["beside", "alone"]
)
def test_the_wheel_works_in_an_environment_of_its_own(wheel, tmp_path, alone):
    """Alone with all that it asks for, or beside what is installed here, but for feedax."""
    folder = tmp_path / "venv"
    venv.EnvBuilder(symlinks=True, with_pip=True).create(folder)
    python, install = folder / "bin" / "python", ["-m", "pip", "install", "--quiet"]
    if alone:
        run(python, *install, wheel, cwd=tmp_path)
    else:
        run(python, *install, "--no-deps", wheel, cwd=tmp_path)
        packages = next(folder.glob("lib/python*/site-packages"))
        (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    image = mnist(train=False)[0][0]
    digit = tmp_path / "seven.png"
    Image.fromarray(np.uint8(np.reshape(image, (28, 28)))).resize((280, 280)).save(digit)

    where = run(python, "-c", "import feedax; print(feedax.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(folder)
    offline = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    command = folder / "bin" / "feedax"
    printed = run(
        command, "train", "--steps", "5", "--out", "five", cwd=tmp_path, **offline
    ).splitlines()
    assert printed[0].startswith("Epoch 0 in ")
    said = run(command, "predict", "five", digit, cwd=tmp_path, **offline)
    assert said.startswith(f"{digit}: ")
    example = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "readme.py").write_text("\n".join(example))
    accuracy = run(python, "readme.py", cwd=tmp_path, **offline).split()[0]
    assert float(accuracy) > 0.95

"""Installation: settings of pip that reach uv, an interrupted one, a GPU, pip where uv cannot."""

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import chromium
import install
import pytest

SCRIPTS = Path(install.__file__).parent


def program(folder: Path, name: str, text: str) -> None:
    """A program that prints a text."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    path.chmod(0o755)


def torch_with(folder: Path, cuda: str) -> None:
    package = folder / "lib" / "python3.11" / "site-packages" / "torch"
    package.mkdir(parents=True)
    (package / "version.py").write_text(
        f"from typing import Optional\n__version__ = '2.14.1'\ncuda: Optional[str] = {cuda}\n"
    )


def test_uv_gets_the_settings_that_pip_reads(tmp_path, monkeypatch):
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://a.example/simple\n"
        "extra-index-url = https://b.example/simple\n    https://c.example/simple\n"
        "find-links = /wheels\n[install]\nconstraint = /c.txt\nno-index = true\n"
    )
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_FIND_LINKS", "/mine /yours")
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = install.pip_settings(sys.executable)
    assert settings["no-index"] == "true"
    variables = install.uv_variables(settings)
    variables.pop("SSL_CERT_FILE", None)  # this machine's own
    assert variables == {
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_DEFAULT_INDEX": "https://a.example/simple",
        "UV_INDEX": "https://b.example/simple https://c.example/simple",
        "UV_FIND_LINKS": "/mine,/yours",
        "UV_CONSTRAINT": "/c.txt",
    }


def test_an_environment_whose_making_was_interrupted_is_made_anew_and_a_whole_one_kept(tmp_path):
    folder = tmp_path / "venv"
    venv.EnvBuilder(symlinks=True).create(folder)
    for mark, is_kept in (("broken", False), ("whole", True)):
        (folder / mark).touch()
        python = install.environment(folder)
        assert subprocess.run([python, "-m", "pip", "--version"], check=False).returncode == 0
        assert (folder / mark).exists() is is_kept


@pytest.mark.parametrize(
    ("torch", "driver", "extra"),
    [
        ("'13.0'", "13.1", "cuda13"),
        ("'12.8'", "13.1", "cuda12"),
        ("None", "12.4", "cuda12"),
        ("None", "13.0", "cuda13"),
        ("None", "14.2", "cuda13"),
        ("None", "11.8", None),
    ],
)
def test_a_gpu_gets_the_plugin_for_the_cuda_of_torch_or_of_the_driver(
    tmp_path, monkeypatch, torch, driver, extra
):
    torch_with(tmp_path, torch)
    program(
        tmp_path / "bin",
        "nvidia-smi",
        f"GPU 0: NVIDIA H100 (UUID: GPU-1)\n| Driver Version: 1   CUDA Version: {driver} |",
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert install.extra_for_gpu(tmp_path) == extra


def test_a_machine_without_a_gpu_gets_none(tmp_path, monkeypatch):
    torch_with(tmp_path, "'13.0'")
    program(tmp_path / "bin", "nvidia-smi", "No devices found.")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert install.extra_for_gpu(tmp_path) is None


@pytest.mark.parametrize(
    ("cuda", "answer"), [("'13.0'", True), ("None", False), (None, sys.platform == "linux")]
)
def test_the_size_that_is_told_is_of_the_torch_that_is_or_will_be_there(tmp_path, cuda, answer):
    if cuda is not None:
        torch_with(tmp_path, cuda)
    assert install.brings_cuda(tmp_path) is answer


@pytest.mark.parametrize(
    ("cuda", "extras", "told"),
    [
        (
            "None",
            ["test"],
            "the tools of the tests (0.2 GB to fetch, 10 seconds)",
        ),
        ("'13.0'", [], "what is new in feedax"),
        (
            None,
            ["test"],
            "feedax with JAX and PyTorch (about 0.4 GB, 1 minute) and "
            "the tools of the tests (0.2 GB to fetch, 10 seconds)",
        ),
    ],
)
def test_what_is_there_already_is_not_announced(tmp_path, monkeypatch, cuda, extras, told):
    monkeypatch.setenv("UV_TORCH_BACKEND", "cpu")
    if cuda is not None:
        torch_with(tmp_path, cuda)
    assert install.contents(tmp_path, extras) == told


def test_every_extra_that_make_installs_has_a_size():
    makefile = (SCRIPTS.parent / "Makefile").read_text()
    assert set(re.findall(r"install\.py (\w+)", makefile)) == set(install.ADDED)


def test_uv_that_fails_says_why_in_a_line():
    what = ["feedax-that-nobody-wrote"]
    reason = install.run_uv(sys.executable, what, {"no-index": "true"})
    assert reason
    assert "\n" not in reason


def test_an_old_python_is_refused(tmp_path):
    script = tmp_path / "old.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); import install\n"
        "sys.version_info, sys.executable = (3, 10, 2), '/usr/bin/python3'\ninstall.main([])\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        "feedax needs Python 3.11 or newer, and /usr/bin/python3 is 3.10; name another one: "
        "make PYTHON=python3.12\n"
    )


def resolved(*flags: str) -> dict[str, str]:
    """The versions that uv would install on Linux, by package."""
    uv = install.find_uv(sys.executable)
    if uv is None:
        pytest.skip("uv is not installed")
    what = ["--quiet", "--no-header", "--no-annotate", "--python-platform", "linux", *flags]
    settings = install.uv_variables(install.pip_settings(sys.executable))
    done = subprocess.run(
        [uv, "pip", "compile", "--python", sys.executable, "pyproject.toml", *what],
        cwd=install.CLONE,
        env=settings
        | {name: os.environ[name] for name in os.environ if name != "UV_TORCH_BACKEND"},
        capture_output=True,
        text=True,
        check=False,
    )
    if not flags and done.returncode:
        pytest.skip(f"no package index can be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return dict(line.split("==") for line in done.stdout.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("cuda", ["13", "12"])
def test_jaxs_plugin_comes_beside_torch_and_shares_its_libraries(cuda):
    alone, both = resolved(), resolved("--extra", f"cuda{cuda}")
    assert alone.items() <= both.items()  # torch and its libraries are those that it has alone
    added = both.keys() - alone.keys()
    assert {f"jax-cuda{cuda}-plugin", f"jax-cuda{cuda}-pjrt"} <= added
    # The same library, of one CUDA, is there once: only the other CUDA brings its own.
    [of_torch] = {name for name in alone if name.startswith("nvidia-cudnn")}
    cudnn = {name for name in added if name.startswith("nvidia-cudnn")}
    assert cudnn == ({f"nvidia-cudnn-cu{cuda}"} - {of_torch})


def test_a_browser_that_cannot_be_installed_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(chromium, "PLACES", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert chromium.find() is None
    with pytest.raises(SystemExit) as stopped:
        chromium.install()
    assert str(stopped.value) == (
        "The pages of feedax are tested in a browser, and there is neither Chromium nor an apt-get "
        "to install it with; install Chromium or Google Chrome as your system does it, and call "
        "make again"
    )


def test_debians_browser_is_asked_for_and_then_found_on_the_path(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(chromium, "PLACES", ())
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    program(tmp_path, "apt-get", "")
    (tmp_path / "apt-get").write_text(
        f'#!/bin/sh\necho "$@"\n[ "$1" = update ] || /bin/cp "$0" {tmp_path}/chromium\n'
    )
    chromium.install()
    assert capfd.readouterr().out.splitlines()[-2:] == [
        "update -qq",
        "install -qq --yes --no-install-recommends chromium",
    ]
    assert chromium.find() == str(tmp_path / "chromium")

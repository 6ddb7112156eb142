"""``feedax show`` as a process."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from helpers import free_port, run_command
from shown_runs import make_run, served

# Of its own: that of the process may have seen a proxy, in a test of downloads.
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(address: str, **headers: str) -> bytes:
    with DIRECTLY.open(urllib.request.Request(address, headers=headers)) as response:
        return response.read()


def test_it_serves_until_ctrl_c_while_a_browser_asks(folder):
    make_run(folder / "a", epochs=1)
    with served(folder) as (process, address):
        port = int(address.split(":")[2].strip("/"))
        assert address == f"http://127.0.0.1:{port}/"
        assert json.loads(get(f"{address}api/runs"))["runs"][0]["name"] == "a"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            get(address, Host=f"evil.example:{port}")
        # Of all addresses of this machine it listens on one.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port))

        def ask_again_and_again():
            with contextlib.suppress(OSError):
                while True:
                    get(f"{address}api/runs")

        thread = threading.Thread(target=ask_again_and_again)
        thread.start()
        # A picture that is still on its way, too.
        with socket.create_connection(("127.0.0.1", port)) as half:
            head = f"POST /api/runs/a HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: {address[:-1]}"
            half.sendall(f"{head}\r\nContent-Length: 1000\r\n\r\nhalf".encode())
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 130
        thread.join()
        assert process.stderr.read().splitlines()[1:] == ["feedax show: stopped by Ctrl-C"]


def test_the_next_free_port_is_taken_unless_one_is_named(folder):
    with served(folder) as (_, first), served(folder) as (_, second):
        ports = [int(address.split(":")[2].strip("/")) for address in (first, second)]
        assert 8642 <= ports[0] < ports[1] < 8742
        done = subprocess.run(
            [sys.executable, "-m", "feedax", "show", str(folder), "--port", str(ports[0])],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f"feedax show: port {ports[0]} must be free, and the system says 'Address already in "
            "use'; give another one, or none\n"
        )
    # It was just in use, and can be had at once.
    with served(folder, "--port", str(ports[0])) as (_, again):
        assert again == first
    port = free_port()
    with served(folder, "--port", str(port)) as (_, address):
        assert address == f"http://127.0.0.1:{port}/"


def test_open_opens_the_browser(folder, tmp_path, monkeypatch):
    browser, asked = tmp_path / "browser", tmp_path / "asked"
    browser.write_text(f'#!/bin/sh\necho "$1" > {asked}.new\nmv {asked}.new {asked}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    with served(folder, "--open") as (process, address):
        while not asked.exists():
            assert process.poll() is None
        assert asked.read_text() == f"{address}\n"


def test_a_run_is_shown_alone(folder):
    for name in "ab":
        make_run(folder / name, epochs=1)
    with served(folder / "b") as (_, address):
        answer = json.loads(get(f"{address}api/runs"))
    assert [run["name"] for run in answer["runs"]] == ["b"]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ("{folder}/none", 1, "{folder}/none must be a folder of runs, or of one, and it is not "
         "there; make one with feedax train, or name another folder"),
        ("{folder}/file", 1, "{folder}/file must be a folder of runs, or of one, and it is a "
         "file; make one with feedax train, or name another folder"),
        ("{folder} {folder}", 2, "one RUN or FOLDER must be given, and there are 2; give the "
         "folder that they lie in"),
        ("--prot 3", 2, "there is no flag --prot; see feedax show --help"),
        ("{folder} --port 0", 2, "--port must be from 1 to 65535, and it is 0"),
        ("{folder} --port 65536", 2, "--port must be from 1 to 65535, and it is 65536"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown(folder: Path, capfd, words, code, sentence):
    (folder / "file").touch()
    done = run_command(capfd, ["show", *words.format(folder=folder).split()])
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == f"feedax show: {sentence.format(folder=folder)}\n"

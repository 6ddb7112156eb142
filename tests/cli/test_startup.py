"""The clock of the start-up."""

import subprocess
import sys
import time

import pytest

from feedax.cli import train as startup


def test_the_parts_follow_each_other_and_add_up():
    clock = startup.StartUp()
    for part in ("imports", "data", "compile", "data"):
        clock.ends(part)
    assert list(clock.seconds) == ["imports", "data", "compile"]
    # The kernel counts in hundredths of a second.
    assert sum(clock.seconds.values()) <= time.time() - startup.process_started() + 0.02
    clock.seconds = {"imports": 2.6, "data": 0.8, "compile": 0.6}
    assert str(clock) == "start-up 4.0 s: imports 2.6, data 0.8, compile 0.6"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says it")
def test_the_process_started_when_its_parent_started_it():
    before = time.time()
    code = "import time; time.sleep(0.3); from feedax.cli import train as s; "
    code += "print(s.process_started(), time.time())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    started, now = map(float, said.split())
    assert before - 0.02 <= started <= now - 0.28


def test_without_an_answer_the_clock_starts_now(monkeypatch):
    monkeypatch.delattr(startup.time, "CLOCK_BOOTTIME", raising=False)
    before = time.time()
    assert before <= startup.process_started() <= time.time()

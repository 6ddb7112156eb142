"""Find the browser that opens pages for tests and screenshots; install Debian's if there is none.

    python3 scripts/chromium.py

The script needs nothing but Python.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PLACES = (
    "/usr/lib/chromium/chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
MISSING = "There is no Chromium to open pages with; install it with: make browser"


def find() -> str | None:
    """Chromium or Google Chrome, if it is there."""
    for path in (*PLACES, *filter(None, map(shutil.which, PROGRAMS))):
        if Path(path).exists():
            return path
    return None


def install() -> None:
    """Install Debian's Chromium.

    Raises:
        SystemExit: it cannot be installed here; apt-get says why, or the message what to do.
    """
    apt, sudo = shutil.which("apt-get"), shutil.which("sudo")
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    if apt is None or not (is_root or sudo):
        sys.exit(
            "The pages of feedax are tested in a browser, and there is neither Chromium nor "
            f"{'an apt-get' if apt is None else 'a sudo'} to install it with; install Chromium or "
            "Google Chrome as your system does it, and call make again"
        )
    print(
        "Installing Debian's Chromium (0.1 GB to fetch, 1 minute), once ...",
        flush=True,
    )
    as_root = [apt] if is_root else [str(sudo), apt]
    subprocess.run([*as_root, "update", "-qq"], check=False)  # old lists may still do
    arguments = ["install", "-qq", "--yes", "--no-install-recommends", "chromium"]
    run = subprocess.run([*as_root, *arguments], check=False)
    if run.returncode or find() is None:
        sys.exit("apt-get installs no Chromium here; install Chromium or Google Chrome otherwise")


if __name__ == "__main__":
    if find() is None:
        install()

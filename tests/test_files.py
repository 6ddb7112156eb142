"""Files that are none: nobody waits for a pipe, and nothing is read from a device."""

import errno
import os
import socket
from pathlib import Path

import pytest

from feedax.files import open_regular, read_regular


def test_a_file_is_read_through_links_and_from_an_open_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"123")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 3) == b"123"
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with open_regular("link", dir_fd=folder) as file:
            assert file.read() == b"123"
    finally:
        os.close(folder)
    (tmp_path / "empty").touch()
    assert read_regular(tmp_path / "empty", 0) == b""


def test_what_is_larger_is_not_read(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="it has more than 1000 bytes") as caught:
        read_regular(tmp_path / "sparse", 1000)
    assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pipe", "it is a pipe"),
        ("link", "it is a pipe"),
        ("socket", "it is a socket"),
        ("folder", "Is a directory"),
        ("/dev/zero", "it is a device"),
        ("/proc/self/environ", "it is a part of the running system"),
        ("gone", "No such file or directory"),
    ],
)
def test_what_is_no_file_is_named_and_left_closed(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    os.mkfifo("pipe")
    Path("link").symlink_to("pipe")
    Path("folder").mkdir()
    before = os.listdir("/proc/self/fd")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        with pytest.raises(OSError, match=said) as caught:
            open_regular(name)
    assert caught.value.strerror == said
    assert os.listdir("/proc/self/fd") == before

# SPDX-License-Identifier: Apache-2.0
"""Atomic writing: complete files or unchanged ones, for any error and any kind of path."""

import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from micro import no_file_beyond

from sohes.cli.command import describe_os_error, fail_clearly
from sohes.utils.files import fitting_name, whole_file, write_whole

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError, OSError(errno.EIO, "bad disk"), SystemExit])
def test_a_writer_that_is_stopped_leaves_the_old_file(stop, tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def write():
        with whole_file(path) as file:
            file.write("new")
            raise stop

    with pytest.raises(stop if isinstance(stop, type) else type(stop)):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with no_file_beyond(1000), pytest.raises(OSError, match="File too large") as caught:
        write_whole(path, "x" * 5000)
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_an_impossible_path_is_named(tmp_path):
    (tmp_path / "file").write_text("content")
    (tmp_path / "folder").mkdir()
    for path, reason in (("file/a.json", "Not a directory"), ("folder", "a folder, expected a file")):
        with pytest.raises(OSError, match=reason) as caught:
            write_whole(tmp_path / path, "x")
        assert describe_os_error(caught.value) == f"{tmp_path / path}: {reason}"
    assert (tmp_path / "file").read_text() == "content"


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounts a file system")
def test_a_read_only_file_system_is_named(tmp_path):
    """The temporary file cannot be removed there either."""
    code = "from sohes.cli.command import fail_clearly\nfrom sohes.utils.files import write_whole\nimport sys\n"
    code += "with fail_clearly('x'): write_whole(sys.argv[1], 'new')"
    mount = 'mount -t tmpfs -o ro tmpfs "$1" || exit 77; "$2" -c "$3" "$1/a.json"'
    command = ["unshare", "-m", "bash", "-c", mount, "x", tmp_path, sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode in (1, 77):
        pytest.skip(f"no mounts here: {done.stderr}")
    assert (done.returncode, done.stderr) == (2, f"x: error: {tmp_path}/a.json: Read-only file system\n")


def test_a_link_is_followed_and_stays(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("there/real.json")
    (tmp_path / "new.json").symlink_to("there/none.json")
    write_whole(tmp_path / "link.json", "new")
    write_whole(tmp_path / "new.json", "newer")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "there" / "real.json").read_text() == "new"
    assert (tmp_path / "there" / "none.json").read_text() == "newer"


def test_devices_and_pipes_are_not_replaced(tmp_path):
    write_whole("/dev/null", "x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(tmp_path / "pipe", "x")
    assert os.read(reader, 9) == b"x"
    os.close(reader)


def test_text_that_is_not_utf8_is_written_as_escapes(tmp_path):
    write_whole(tmp_path / "a.html", os.fsdecode(b"Jos\xe9 \xc3\xbc"))
    assert (tmp_path / "a.html").read_bytes() == b"Jos\\udce9 \xc3\xbc"


@pytest.mark.parametrize("letter", ["x", "ü", "写", "😀", os.fsdecode(b"\xe9")])
@pytest.mark.parametrize("suffix", [".png", ".labels.png"])
def test_names_that_fit(letter, suffix, tmp_path):
    size = len(os.fsencode(letter))
    longest = letter * (251 // size)
    name = fitting_name(longest, suffix)
    assert len(os.fsencode(name)) <= 255
    assert name.endswith(suffix)
    write_whole(tmp_path / name, "x")  # its temporary name fits, too
    if letter != os.fsdecode(b"\xe9"):
        name.encode()  # not cut within a character
    assert fitting_name("short", suffix) == f"short{suffix}"
    assert fitting_name(longest + "a", ".labels.png") != fitting_name(longest + "b", ".labels.png")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "/a/b: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system", b"/a/\xe9"), "/a/\\udce9: Read-only file system"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "/a", None, "/b"), "/a -> /b: Invalid cross-device link"),
        (OSError("encoder error -2\nwhen writing image file"), "encoder error -2 when writing image file"),
        (ConnectionResetError(), "ConnectionResetError"),
        (OSError(errno.ENOSPC, "No space left", 1), "No space left; what was written stays"),
    ],
)
def test_an_error_of_the_system_is_one_line_and_exit_code_2(error, line, capsysbinary):
    with pytest.raises(SystemExit) as stop, fail_clearly("sohes.x"):
        raise error
    assert stop.value.code == 2
    assert capsysbinary.readouterr().err == f"sohes.x: error: {line}\n".encode()

"""One owner of a folder: among processes, not inherited, gone with its process."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.locks import FolderLock

pytest.importorskip("fcntl")


def holder(path, *lines):
    """A process that holds the lock and has said so; it ends at the end of its input."""
    body = "\n".join(
        [
            "import os, sys, time",
            "from pathlib import Path",
            "from lit_semantic_peft.locks import FolderLock",
            f"lock = FolderLock(Path({str(path)!r}))",
            "lock.acquire()",
            "print('held', flush=True)",
            *lines,
            "sys.stdin.read()",
        ]
    )
    process = subprocess.Popen([sys.executable, "-c", body], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def end(process):
    process.stdin.close()
    process.stdout.close()
    process.wait()


def test_another_process_is_refused_and_named(tmp_path):
    path = tmp_path / "run" / ".lock"
    process = holder(path)
    with pytest.raises(InputError, match=f"in use by process {process.pid} on "):
        FolderLock(path).acquire()
    process.send_signal(signal.SIGSTOP)  # a paused owner is an owner
    with pytest.raises(InputError, match="in use by"):
        FolderLock(path).acquire()
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()
    lock = FolderLock(path)
    lock.acquire()  # its file is still there, its lock is not
    lock.release()
    assert list(path.parent.iterdir()) == []
    end(process)


def test_a_forked_worker_does_not_keep_it(tmp_path):
    """An orphan of a killed job must not block the run that resumes it."""
    path = tmp_path / ".lock"
    process = holder(path, "worker = os.fork()", "if worker == 0: time.sleep(60)", "print(worker, flush=True)")
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    os.kill(worker, 0)  # it lives
    lock = FolderLock(path)
    lock.acquire()
    lock.release()
    os.kill(worker, signal.SIGKILL)
    end(process)


def test_a_file_that_its_owner_removes_is_not_locked_in_vain(tmp_path, monkeypatch):
    """Between opening and locking, the owner may remove the file: a lock on what is gone keeps nobody out."""
    path = tmp_path / ".lock"
    path.touch()
    real, removed = os.open, []

    def open_then_remove(*arguments):
        handle = real(*arguments)
        if not removed:
            removed.append(path.unlink())
        return handle

    monkeypatch.setattr(os, "open", open_then_remove)
    lock = FolderLock(path)
    lock.acquire()
    assert path.is_file()
    process = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import sys; from pathlib import Path; from lit_semantic_peft.locks import FolderLock; "
            "FolderLock(Path(sys.argv[1])).acquire()",
            str(path),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "InputError" in process.stderr
    lock.release()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def refuse(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    lock = FolderLock(tmp_path / "run" / ".lock")
    lock.acquire()
    assert "without locks" in caplog.text
    lock.release()
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_has_the_name_of_a_lock_and_is_none_stays(tmp_path, kind):
    notes, path = tmp_path / "notes", tmp_path / ".lock"
    notes.write_text("mine")
    if kind == "file":
        path.write_text("mine")
    elif kind == "link":
        path.symlink_to(notes)
    else:
        path.mkdir()
    with pytest.raises((InputError, OSError)):
        FolderLock(path).acquire()
    assert notes.read_text() == "mine"
    assert path.is_dir() if kind == "folder" else path.read_text() == "mine"


def test_the_lock_of_a_process_that_could_not_sign_it_is_taken(tmp_path):
    path = tmp_path / ".lock"
    path.touch()
    lock = FolderLock(path)
    lock.acquire()
    assert path.read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    lock.release()
    assert not path.exists()

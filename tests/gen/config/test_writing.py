"""Files are whole or not there, whenever a process is killed; and where one process writes, no other does."""

import ast
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gen.cli import main
from gen.config import writing
from gen.config.errors import UserError
from gen.config.writing import Lock, partial_name, replacing, sweep, write_json, write_text

ROOT = Path(__file__).resolve().parents[3]


def dead_pid():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_file_that_could_not_be_written_is_the_old_one(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(writing, "sync", lambda path: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "a.txt", "new")
    with pytest.raises(ValueError, match="nan"):
        write_json(tmp_path / "a.txt", float("nan"))
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]


def test_what_killed_processes_left_is_removed_and_what_living_ones_write_is_not(tmp_path):
    gone, alive = dead_pid(), os.getppid()
    a, b, living = (partial_name(name, pid=pid) for name, pid in (("a.txt", gone), ("b", gone), ("a.txt", alive)))
    for name in (a, b, living, ".partial-x", "c/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("half")
    (tmp_path / "c" / partial_name("step-0000001", pid=gone) / "state").mkdir(parents=True)
    write_text(tmp_path / "a.txt", "whole")
    assert not (tmp_path / a).exists() and (tmp_path / b).exists()
    sweep(tmp_path)
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert left == [living, ".partial-x", "a.txt", "c/d.txt"]
    sweep(tmp_path / "nowhere")


def test_what_another_host_writes_is_left_until_it_is_old(tmp_path):
    """A process of this host has the same number, or none has it: neither says anything about the other's."""
    left = tmp_path / partial_name("a.txt", pid=dead_pid()).replace("@", "@0")
    left.write_text("half")
    sweep(tmp_path)
    assert left.exists()
    os.utime(left, (time.time() - 4000,) * 2)
    sweep(tmp_path)
    assert not left.exists()


def test_what_stepped_aside_comes_back_if_its_successor_never_came(tmp_path):
    gone = dead_pid()
    for name in ("one", "two"):
        (tmp_path / partial_name(name, "aside", gone)).mkdir()
    (tmp_path / "two").mkdir()
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


def test_a_kill_while_a_file_is_replaced_leaves_one_of_both(tmp_path):
    code = f"""
from gen.config.writing import write_text
from pathlib import Path
for i in range(10**6):
    write_text(Path({str(tmp_path / "a.txt")!r}), str(i % 10) * 50_000)
    print(i, flush=True)
"""
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(0.02)
        child.kill()
        child.wait()
        child.stdout.close()
        text = (tmp_path / "a.txt").read_text()
        assert len(text) == 50_000 and len(set(text)) == 1
    write_text(tmp_path / "a.txt", "")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_lock_says_who_holds_it_and_goes_with_its_folder(tmp_path):
    run = tmp_path / "run"
    with Lock(run / ".lock", run):
        with pytest.raises(UserError, match=rf"run is in use: process {os.getpid()} on \S+, since 20\S+, is writing"):
            Lock(run / ".lock", run)
        assert (run / ".lock").exists()
    assert not run.exists()
    with Lock(run / ".lock", run):
        (run / "kept").touch()
    assert [p.name for p in run.iterdir()] == ["kept"]


HOLD = """
import os, sys, time
from pathlib import Path
from gen.config.writing import Lock
lock = Lock(Path(sys.argv[1]), Path(sys.argv[1]))
if sys.argv[2] == "fork":
    there, here = os.pipe()
    if os.fork() == 0:
        os.write(here, b".")  # from here on it has closed the lock that it was born with
        time.sleep(60)
    os.read(there, 1)
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("way", ["alone", "fork"])
def test_a_kill_frees_a_lock_though_children_live_on(tmp_path, way):
    file = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file), way], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        pid = int(holder.stdout.readline())
        with pytest.raises(UserError, match=f"process {pid} "):
            Lock(file, file)
        os.kill(pid, signal.SIGKILL)
        holder.wait()
        with Lock(file, file):
            assert str(os.getpid()) in file.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(holder.pid, signal.SIGKILL)
        holder.stdout.close()


@pytest.mark.parametrize(
    ("pid", "host", "free"),
    [("dead", "here", True), ("alive", "here", False), ("dead", "elsewhere", False), (None, None, True)],
)
def test_without_flock_the_lock_of_a_dead_process_here_is_taken_over(tmp_path, monkeypatch, pid, host, free):
    import fcntl

    monkeypatch.setattr(fcntl, "flock", lambda *args: (_ for _ in ()).throw(OSError(37, "No locks available")))
    file = tmp_path / "lock"
    if pid is not None:
        named = {"dead": dead_pid(), "alive": os.getppid()}[pid]
        file.write_text(f"process {named} on {socket.gethostname() if host == 'here' else 'other'}, since now,")
    if free:
        with Lock(file, file):
            assert str(os.getpid()) in file.read_text()
    else:
        with pytest.raises(UserError, match=r"process \d+ on \S+, since now, is writing it"):
            Lock(file, file)


def test_a_lock_that_was_removed_is_taken_again_unless_another_has_it(tmp_path):
    file = tmp_path / "lock"
    lock = Lock(file, file)
    assert not lock.renew()
    file.unlink()
    assert lock.renew() and file.exists()
    file.unlink()
    with Lock(file, file):
        with pytest.raises(UserError, match="in use"):
            lock.renew()
        lock.release()  # of what it has no more
        assert file.exists()


def test_the_yielded_name_has_the_suffix(tmp_path):
    with replacing(tmp_path / "a" / "b.png") as partial:
        assert partial.suffix == ".png" and partial.parent == tmp_path / "a"
        partial.touch()
    assert (tmp_path / "a" / "b.png").exists()


HOUSE = [
    p for folder in ("gen", "samplers", "distill", "models", "kernels", "eval") for p in (ROOT / folder).rglob("*.py")
]


@pytest.mark.slow
def test_no_file_of_results_is_written_in_place():
    """A call of write_text or write_bytes, or an open to write, is of something called `partial`, or in gen/config.

    Or of a `stream` in memory.
    """
    in_place = []
    for path in HOUSE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            call = ast.unparse(node)
            writes = node.func.attr in ("write_text", "write_bytes", "savez", "save_file") or "open('w" in call
            if writes and "partial" not in call and "(stream," not in call and path.parent.name != "config":
                in_place.append(f"{path.relative_to(ROOT)}:{node.lineno}: {call}")
    assert not in_place


def test_two_searches_do_not_write_one_file(tmp_path, capsys):
    out = tmp_path / "grid.json"
    with Lock(tmp_path / ".lock-grid.json", out):
        assert main(["search", str(tmp_path / "run"), "--out", str(out)]) == 2
    assert "grid.json is in use: process" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_errors_name_the_file_that_was_to_be_written(tmp_path):
    for path, says in (
        (tmp_path / ("a" * 250 + ".json"), "a" * 250),
        (tmp_path / "file" / "a.json", "file is a file: .*a.json cannot be written"),
    ):
        (tmp_path / "file").touch()
        with pytest.raises((OSError, UserError), match=says) as caught:
            write_text(path, "x")
        assert ".partial" not in str(caught.value)

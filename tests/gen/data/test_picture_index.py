"""The index of pictures: reopening reads no picture, and nothing that is damaged, stale or shared makes it lie."""

import os
import subprocess
import sys
from multiprocessing import get_context

import numpy as np
import pytest
from PIL import Image

from gen.config.errors import UserError
from gen.data.folder import Folder
from gen.data.lib import picture_index
from gen.data.lib.archives import Files
from gen.data.lib.cache_file import CacheFile


@pytest.fixture
def many(tmp_path, monkeypatch):
    """A folder that is large enough for an index, in a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(picture_index, "SMALLEST", 10)
    for i in range(30):
        path = tmp_path / "many" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "many"


@pytest.fixture
def reads(monkeypatch):
    """The number of pictures that were read."""
    count = []
    read = Files.read
    monkeypatch.setattr(Files, "read", lambda self, row: count.append(row) or read(self, row))
    return count


def opened(root, **fields):
    return Folder(str(root), size=8, **fields).open("train").fingerprint


def index_file(root):
    return CacheFile("folder", str(root)).file


def test_reopening_reads_nothing_and_what_changed_alone_is_read_anew(many, reads):
    first = opened(many)
    assert len(reads) == 30 and index_file(many).is_file() and not list(many.glob("**/*.txt"))
    assert opened(many) == first and len(reads) == 30
    (many / "a" / "00.png").write_bytes((many / "a" / "02.png").read_bytes())
    changed = opened(many)
    assert changed != first and len(reads) == 31
    assert opened(many, skip_corrupt=True) == changed and len(reads) == 61  # decoded in full for the first time
    assert opened(many, skip_corrupt=True) == changed and opened(many) == changed and len(reads) == 61
    (many / "a" / "00.png").unlink()
    assert opened(many) not in (first, changed) and len(reads) == 61
    assert opened(os.path.relpath(many)) == opened(many) and len(reads) == 61


def test_an_index_that_is_damaged_is_built_anew(many, reads):
    first = opened(many)
    good = index_file(many).read_bytes()
    for damage in (good[:-40], b"", good.replace(b" 8 9 ", b" 9 8 ", 1), b"\xff" + good, good + b"\n", good[200:]):
        index_file(many).write_bytes(damage)
        reads.clear()
        assert opened(many) == first and len(reads) == 30
        assert index_file(many).read_bytes() == good


def test_a_picture_that_changed_in_secret_is_noticed_when_it_is_read(many, reads):
    data = Folder(str(many), size=8, holdout=0.0).open("train")
    path = many / "a" / "04.png"
    status, content = path.stat(), bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same time
    data = Folder(str(many), size=8, holdout=0.0).open("train")
    assert len(reads) == 30
    with pytest.raises(UserError, match=r"a/04.png has changed since the data were opened"):
        for i in range(len(data)):
            data[i]
    reads.clear()
    Folder(str(many), size=8, holdout=0.0).open("train")
    assert len(reads) == 30  # the index that lied is gone


def test_a_cache_that_cannot_be_written_costs_the_memory_alone(many, monkeypatch, tmp_path):
    first = opened(many)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="nothing is remembered, so every opening reads all pictures"):
        assert opened(many) == first


def test_corrupt_pictures_are_counted_at_every_opening(many):
    (many / "a" / "00.png").write_bytes(b"no picture")
    for _ in range(2):
        with pytest.warns(UserWarning, match="left out 1 of 30 pictures: a/00.png"):
            opened(many, skip_corrupt=True)
        with pytest.raises(UserError, match=r"a/00.png cannot be decoded"):
            opened(many)


def _open_in(root, cache, queue):
    os.environ["XDG_CACHE_HOME"] = cache
    picture_index.SMALLEST = 10
    count = []
    read = Files.read
    Files.read = lambda self, row: count.append(row) or read(self, row)
    queue.put((opened(root), len(count)))


def test_processes_that_open_at_once_read_each_picture_once(many, tmp_path):
    context = get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_open_in, args=(many, str(tmp_path / "cache"), queue)) for _ in range(3)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len({fingerprint for fingerprint, _ in results}) == 1
    assert sum(count for _, count in results) == 30


KILLED = """
import os, signal, sys
from gen.data.lib import picture_index
from gen.data.lib.archives import Files
from gen.data.folder import Folder
picture_index.SMALLEST, picture_index.CHUNK, picture_index.SAVE_EVERY = 10, 2, 1
read = Files.read
Files.read = lambda self, row: os.kill(os.getpid(), signal.SIGKILL) if row == 20 else read(self, row)
Folder(sys.argv[1], size=8).open("train")
"""


@pytest.mark.slow
def test_a_kill_leaves_what_was_read(many, reads):
    assert subprocess.run([sys.executable, "-c", KILLED, str(many)]).returncode == -9
    first = opened(many)
    assert 0 < len(reads) <= 12
    assert opened(many) == first and len(reads) <= 12
    assert [file.suffix for file in sorted(index_file(many).parent.iterdir())] == [".lock", ".txt"]

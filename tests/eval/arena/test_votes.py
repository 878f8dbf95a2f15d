"""A file of votes: whole after any kill, strict about what it holds."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from gen.config.errors import UserError
from gen.eval.arena.votes import Vote, VoteFile, read_votes


def vote(i=0, ranks=(1, 2), models=("a", "b")):
    return Vote(ballot=f"ballot {i}", picture="0.png", models=models, ranks=ranks)


def written(path, *votes):
    file = VoteFile(path)
    for one in votes:
        file.append(one)
    file.close()
    return path


def test_votes_come_back_and_go_on(tmp_path) -> None:
    path = written(tmp_path / "deep" / "votes.jsonl", vote(0), vote(1, (None, 1), ("ä", "b\nc")))
    written(path, vote(2), vote(0))
    assert read_votes(path) == [vote(0), vote(1, (None, 1), ("ä", "b\nc")), vote(2)]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_last_line_is_passed_over_and_cut_off(tmp_path, cut) -> None:
    path = written(tmp_path / "votes.jsonl", vote(0), vote(1))
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.warns(UserWarning, match="ends in the middle of a vote"):
        assert read_votes(path) == [vote(0)]
    with pytest.warns(UserWarning, match="middle"):
        written(path, vote(2))
    assert read_votes(path) == [vote(0), vote(2)]


def test_killed_at_any_time_it_holds_every_vote_that_was_confirmed(tmp_path) -> None:
    path = tmp_path / "votes.jsonl"
    code = (
        "import sys, itertools; from pathlib import Path; from gen.eval.arena.votes import Vote, VoteFile\n"
        "file = VoteFile(Path(sys.argv[1]))\n"
        "for i in itertools.count():\n"
        "    file.append(Vote(ballot=str(i), picture='0', models=('a', 'b'), ranks=(1, 2))); print(i, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline()
    time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    confirmed = child.stdout.read().split()
    child.wait()
    child.stdout.close()
    assert len(read_votes(path)) >= 1 + len(confirmed)


def test_one_writer_at_a_time(tmp_path) -> None:
    file = VoteFile(tmp_path / "votes.jsonl")
    with pytest.raises(UserError, match="is in use"):
        VoteFile(file.path)
    file.close()
    VoteFile(file.path).close()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ranks": [1, 3]}, "ranks [1, 3] of 2 pictures"),
        ({"ranks": [0, 1]}, "allowed: 1 for the best"),
        ({"ranks": [2, 2]}, "1 for the best"),
        ({"ranks": [None, None]}, "1 for the best"),
        ({"ranks": [1]}, "of 2 pictures"),
        ({"ranks": [1, True]}, "Vote.ranks"),
        ({"models": ["a", "a"]}, "two or more different"),
        ({"models": ["a"], "ranks": [1]}, "two or more different"),
        ({"models": ["a", 5]}, "Vote.models"),
        ({"voter": "x"}, "unknown key 'voter'"),
        ({"picture": None}, "Vote.picture"),
    ],
    ids=str,
)
def test_refuses_what_is_no_vote(tmp_path, change, says) -> None:
    path = written(tmp_path / "votes.jsonl", vote())
    line = json.loads(path.read_text()) | {"ballot": "other"} | change
    path.write_text(path.read_text() + json.dumps(line) + "\n" + path.read_text())
    with pytest.raises(UserError) as error:
        read_votes(path)
    assert "line 2" in str(error.value) and says in str(error.value)

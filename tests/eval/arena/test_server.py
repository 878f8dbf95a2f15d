"""The arena's server: it serves the pictures of its ballots to its own page, takes valid votes, and no more."""

import json
import random
import threading
import time
import urllib.error
import urllib.request

import pytest

from gen.cli import main
from gen.config.errors import UserError
from gen.eval.arena.board import Board
from gen.eval.arena.contestants import contestants
from gen.eval.arena.server import Arena, application, bound
from gen.eval.arena.votes import VoteFile, read_votes
from gen.training.trainer import train
from tests.eval.arena.test_contestants import folder
from tests.gen.tiny import tiny


@pytest.fixture
def arena(tmp_path):
    models = contestants([folder(tmp_path / name, "0.png", "1.png") for name in "abcde"])
    (tmp_path / "secret.png").write_bytes(b"secret")
    with VoteFile(tmp_path / "votes.jsonl") as votes:
        yield Arena(models, votes, prompts=["zero", "one"], rng=random.Random(0))


@pytest.fixture
def call(arena):
    """What a browser gets: (status, headers, body) of a path."""
    import uvicorn

    listening = bound("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(application(arena), log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.005)
    root = f"http://127.0.0.1:{listening.getsockname()[1]}"

    def get(path, body=None, **headers):
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        request = urllib.request.Request(root + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    yield get
    server.should_exit = True
    thread.join()
    listening.close()


def test_a_vote_from_question_to_ranking(arena, call, tmp_path) -> None:
    status, headers, page = call("/")
    assert status == 200 and "script-src 'sha256-" in headers["Content-Security-Policy"] and b"pictures" in page
    asked = json.loads(call("/ballot", {})[2])
    assert len(asked["pictures"]) == 4 and asked["prompt"] in ("zero", "one") and asked["votes"] == 0
    status, headers, picture = call("/" + asked["pictures"][3])
    assert (status, picture, headers["Content-Type"], headers["X-Content-Type-Options"]) == (
        200, b"picture", "image/png", "nosniff",
    )  # fmt: skip
    vote = {"ballot": asked["ballot"], "ranks": [2, 1, None, 2]}
    assert json.loads(call("/vote", vote)[2]) == {"votes": 1}
    assert json.loads(call("/vote", vote)[2]) == {"votes": 1}  # sent twice
    assert call("/" + asked["pictures"][0])[0] == 404  # the ballot is closed
    (kept,) = read_votes(tmp_path / "votes.jsonl")
    assert kept.ranks == (2, 1, None, 2) and kept.ballot == asked["ballot"] and kept.date
    assert Board.of([kept], models="abcde").standings() == arena.board.standings()
    assert b"5 models, 1 vote." in call("/ranking")[2]


def test_refuses_votes_that_are_none(arena, call) -> None:
    ballot = json.loads(call("/ballot", {})[2])["ballot"]
    for body, status, says in (
        (b"{", 400, "no JSON"),
        ([], 400, "vote"),
        ({"ballot": ballot}, 400, "ranks"),
        ({"ballot": ballot, "ranks": [1, 2, 3]}, 400, "of 4 pictures"),
        ({"ballot": ballot, "ranks": [1, 2, 3, 5]}, 400, "allowed"),
        ({"ballot": ballot, "ranks": [1, 2, 3, "x"]}, 400, "ranks"),
        ({"ballot": ballot, "ranks": [1, 2, 3, 4], "model": "a"}, 400, "unknown key"),
        ({"ballot": "guessed", "ranks": [1, 2, 3, 4]}, 409, "not open"),
        (b" " * 20_000, 400, "bytes"),
    ):
        code, _, answer = call("/vote", body)
        assert code == status and says in json.loads(answer)["error"]
    assert not arena.votes.votes
    good = {"ballot": ballot, "ranks": [1, 2, 3, 4]}
    assert call("/vote", good, Origin="http://evil.example")[0] == 403
    assert call("/vote", good, Content_Type="text/plain")[0] == 403
    assert call("/ballot", {}, Origin="null")[0] == 403
    assert call("/vote", good, Host="evil.example")[0] == 400
    assert call("/vote")[0] == 405 and not arena.votes.votes


def test_serves_no_other_file(call) -> None:
    ballot = json.loads(call("/ballot", {})[2])["ballot"]
    for path in (
        f"/picture/{ballot}/4", f"/picture/{ballot}/-1", f"/picture/{ballot}/../secret.png", "/secret.png",
        "/picture/..%2f..%2fsecret.png/0", f"/picture/{ballot}/%2e%2e%2fsecret.png", "/picture/x/0", "/votes.jsonl",
    ):  # fmt: skip
        status, _, body = call(path)
        assert status == 404 and b"secret" not in body and body != b"picture"


def test_old_ballots_are_forgotten_and_votes_of_an_old_file_count(arena, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("gen.eval.arena.server.MAX_OPEN", 2)
    first, *rest = [arena.ballot() for _ in range(3)]
    assert arena.file(first.id, 0) is None and arena.file(rest[0].id, 0) is not None
    for wrong, says in (({"prompts": ["one"]}, "1 prompts of 2 pictures"), ({"k": 1}, "at least 2")):
        with pytest.raises(UserError, match=says):
            Arena(list(arena.models.values()), arena.votes, **wrong)


def test_the_command_prints_the_ranking_and_names_what_is_wrong(tmp_path, capsys) -> None:
    votes = tmp_path / "votes.jsonl"
    line = {"ballot": "x", "picture": "0", "models": ["a|b", "c"], "ranks": [2, 1]}
    votes.write_text(json.dumps(line) + "\n")
    assert main(["arena", "--votes", str(votes)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[2].split()[:3] == ["1", "c", "7.88"] and out[3].split()[1] == "a|b"
    assert main(["arena", "--votes", str(votes), "--json", "--rule", "all-pairs"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["rating"] == {"mu": 29.2052208700336, "sigma": 7.194481348831082}
    model = str(folder(tmp_path / "m", "0.png"))
    for words, says in (
        (["--votes", str(tmp_path / "none.jsonl")], "none.jsonl"),
        (["--rule", "elo"], "all-pairs, trueskill"),
        ([model], "two or more models"),
        ([model, model, "--names", "a,b", "--port", "99999"], "port"),
        ([model, model, "--names", "a,b", "--host", "no.such.host.invalid"], "cannot listen on"),
    ):
        assert main(["arena", *words]) == 2
        assert says in capsys.readouterr().err


def test_a_run_is_sampled_once(tmp_path, monkeypatch, capsys) -> None:
    shown = []
    monkeypatch.setattr("gen.eval.arena.server.serve", lambda arena, listening, hosts: shown.append((arena, hosts)))
    train(tiny(steps=1), tmp_path / "run", quiet=True)
    other = folder(tmp_path / "other", "000000.png", "000001.png", "2.png")
    words = ["arena", str(tmp_path / "run"), str(other), "--port", "0", "--votes", str(tmp_path / "votes.jsonl")]
    for _ in range(2):
        assert main([*words, "-n", "3", "--steps", "1"]) == 0
    arena, hosts = shown[1]
    assert list(arena.models) == ["run", "other"] and arena.pictures == ["000000", "000001"]
    assert len(list((tmp_path / "run" / "arena").iterdir())) == 1 and "127.0.0.1" in hosts
    assert capsys.readouterr().out.count("3 samples, 1 evaluations each") == 1
    assert main([*words, "-n", "2", "--steps", "1"]) == 0
    assert len(list((tmp_path / "run" / "arena").iterdir())) == 2

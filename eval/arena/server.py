"""The local page of an arena: shows K pictures, takes a ranking, appends it to the votes."""

from __future__ import annotations

import random
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gen.config.errors import MissingDependency, UserError
from gen.config.reading import parse_json
from gen.config.spec import Json, convert
from gen.eval.arena.board import Board
from gen.eval.arena.contestants import MEDIA_TYPES, Contestant
from gen.eval.arena.rating import RatingRule
from gen.eval.arena.votes import Vote, VoteFile
from gen.eval.pages.arena import arena_page, arena_policy, standings_page

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["Arena", "Ballot", "application", "bound", "serve"]

MAX_BODY = 10_000  # bytes of a vote
MAX_OPEN = 10_000  # ballots that may be answered; the oldest is forgotten first
FOREIGN = "votes are JSON from the arena's own page"
HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
LOCAL = ("127.0.0.1", "localhost", "::1", "[::1]")  # as addresses, and as clients name them


@dataclass(frozen=True)
class Ballot:
    """A question to a voter.

    Attributes:
        id: unguessable.
        picture: name of the prompt or noise.
        models: as they stand from the left.
    """

    id: str
    picture: str
    models: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """The body of a vote, as the page sends it."""

    ballot: str
    ranks: tuple[int | None, ...]


class Arena:
    """Ballots and their votes.

    Args:
        models: whose pictures are compared.
        votes: where rankings are kept; those it holds count.
        k: pictures at a time; fewer if there are fewer models.
        prompts: of the pictures in the order of their names; None for none.
        rule: that rates the models.
        rng: chooses; seeded by the system by default.
    """

    def __init__(
        self,
        models: Sequence[Contestant],
        votes: VoteFile,
        k: int = 4,
        prompts: Sequence[str] | None = None,
        rule: RatingRule | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.models = {model.name: model for model in models}
        self.pictures = list(models[0].pictures)
        if prompts is not None and len(prompts) != len(self.pictures):
            raise UserError(f"{len(prompts)} prompts of {len(self.pictures)} pictures that all models have; one each")
        if k < 2:
            raise UserError(f"{k} pictures at a time; allowed: at least 2")
        self.prompts = dict(zip(self.pictures, prompts or [""] * len(self.pictures), strict=True))
        self.votes, self.k = votes, min(k, len(models))
        self.board = Board.of(votes.votes, rule, self.models)
        self.rng = rng or random.Random(secrets.randbits(64))
        self._open: dict[str, Ballot] = {}
        self._closed = {vote.ballot for vote in votes.votes}

    def ballot(self) -> Ballot:
        """Return a new question."""
        models = self.board.pick(self.k, self.rng, list(self.models))
        ballot = Ballot(secrets.token_urlsafe(16), self.rng.choice(self.pictures), tuple(models))
        self._open[ballot.id] = ballot
        if len(self._open) > MAX_OPEN:
            del self._open[next(iter(self._open))]
        return ballot

    def file(self, ballot: str, slot: int) -> Path | None:
        """Return the file of one of an open ballot's pictures; None if there is none."""
        asked = self._open.get(ballot)
        if asked is None or not 0 <= slot < len(asked.models):
            return None
        return self.models[asked.models[slot]].pictures[asked.picture]

    def vote(self, answer: Answer) -> bool:
        """Record an answer; return False for a ballot that is unknown, or was forgotten. One sent twice counts once.

        Raises:
            UserError: for ranks that order nothing.
        """
        if answer.ballot in self._closed:
            return True
        asked = self._open.get(answer.ballot)
        if asked is None:
            return False
        date = datetime.now(UTC).isoformat(timespec="seconds")
        vote = Vote(ballot=asked.id, picture=asked.picture, models=asked.models, ranks=answer.ranks, date=date)
        self.votes.append(vote)
        self.board.add(vote.models, vote.ranks)
        self._closed.add(asked.id)
        del self._open[asked.id]
        return True


def application(arena: Arena, hosts: Sequence[str] = LOCAL) -> Starlette:
    """Return the web application: the page, ballots, their pictures, votes and the ranking.

    Nothing but the pictures of open ballots is served, by ballot and position: no request holds a path. A vote must
    come from the page itself (its origin), and requests must name one of the hosts, so that no other site can use them.

    Args:
        arena: what is asked.
        hosts: names by which the server may be called; "*" for any.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.routing import Route

    site = Site(arena)
    return Starlette(
        routes=[
            Route("/", site.page),
            Route("/ranking", site.ranking),
            Route("/favicon.ico", site.icon),
            Route("/ballot", site.ballot, methods=["POST"]),
            Route("/picture/{ballot}/{slot:int}", site.picture),
            Route("/vote", site.vote, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
    )


class Site:
    """Answers to the requests of `application`."""

    def __init__(self, arena: Arena) -> None:
        from starlette import responses

        self.arena, self.responses = arena, responses

    async def page(self, request: Request) -> Response:
        policy = {"Content-Security-Policy": arena_policy()}
        return self.responses.HTMLResponse(arena_page(), headers=HEADERS | policy)

    async def ranking(self, request: Request) -> Response:
        board = self.arena.board
        return self.responses.HTMLResponse(standings_page(board.standings(), board.votes), headers=HEADERS)

    async def icon(self, request: Request) -> Response:
        return self.responses.Response(status_code=204)

    async def ballot(self, request: Request) -> Response:
        if not _is_own(request):
            return self._json({"error": FOREIGN}, 403)
        asked = self.arena.ballot()
        pictures = [f"picture/{asked.id}/{slot}" for slot in range(len(asked.models))]
        body = {"ballot": asked.id, "pictures": pictures, "prompt": self.arena.prompts[asked.picture]}
        return self._json({**body, "votes": self.arena.board.votes})

    async def picture(self, request: Request) -> Response:
        file = self.arena.file(request.path_params["ballot"], request.path_params["slot"])
        if file is None or not file.is_file():
            return self._json({"error": "no such picture"}, 404)
        return self.responses.FileResponse(file, media_type=MEDIA_TYPES[file.suffix.lower()], headers=HEADERS)

    async def vote(self, request: Request) -> Response:
        if not _is_own(request):
            return self._json({"error": FOREIGN}, 403)
        try:
            kept = self.arena.vote(convert(await _body(request), Answer, "vote"))
        except UserError as error:
            return self._json({"error": str(error)}, 400)
        if not kept:
            return self._json({"error": "this ballot is not open any more; the next one is"}, 409)
        return self._json({"votes": self.arena.board.votes})

    def _json(self, body: Json, status: int = 200) -> Response:
        return self.responses.JSONResponse(body, status, headers=HEADERS)


def _is_own(request: Request) -> bool:
    """Return whether a request holds JSON, which other sites' forms cannot send, and comes from no other origin."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    origin = request.headers.get("origin")
    return kind == "application/json" and origin in (None, f"http://{request.headers.get('host')}")


async def _body(request: Request) -> Json:
    """Return the JSON of a request; UserError if it is none, or too large."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise UserError(f"a vote of more than {MAX_BODY:,} bytes")
    return parse_json(body.decode("utf-8", "replace"), "the vote")


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: 127.0.0.1 for this machine alone.
        port: 0 for any that is free.

    Raises:
        UserError: if the address cannot be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host}, port {port}: {getattr(error, 'strerror', None) or error}") from None
    return listening


def serve(arena: Arena, listening: socket.socket, hosts: Sequence[str] = LOCAL) -> None:
    """Serve until interrupted.

    Args:
        arena: what is asked.
        listening: of `bound`.
        hosts: as of `application`.

    Raises:
        MissingDependency: without starlette and uvicorn.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise MissingDependency(
            f"the arena's page needs starlette and uvicorn ({error}): pip install 'gen-diffusion[serve]'"
        ) from None
    config = uvicorn.Config(application(arena, hosts), log_level="warning", access_log=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[listening])

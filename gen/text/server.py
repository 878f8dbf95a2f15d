"""A local server of a text model that speaks the protocol of OpenAI's completions, over a decoding queue.

Streams hold final text only: what a diffusion model may still change is not sent.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import json
import queue
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gen.config.errors import MissingDependency, UserError, shown
from gen.config.reading import parse_json
from gen.config.spec import Json
from gen.diffusion.noise import sample_seeds
from gen.text.batching import DecodingQueue, DecodingRequest, QueueFull
from gen.text.completions import (
    ChatRequest,
    CompletionRequest,
    final_text,
    is_infilling,
    most_tokens,
    read_call,
    stop_strings,
    written_text,
)
from gen.text.gaps import Gap
from gen.text.pipeline import LENGTH, Prompt

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["QueueWorker", "application", "serve"]

MAX_BODY = 4 * 2**20  # bytes of a request
LOCAL = ("127.0.0.1", "localhost", "::1", "[::1]")  # as addresses, and as clients name them


class QueueWorker:
    """A decoding queue in a thread of its own.

    Args:
        requests: the queue, which no one else uses.
    """

    def __init__(self, requests: DecodingQueue) -> None:
        self.requests = requests
        self.inbox = queue.SimpleQueue[Callable[[], None] | None]()
        self.watchers = dict[int, Callable[[DecodingRequest], None]]()
        self.sent = dict[int, str]()
        self.thread = threading.Thread(target=self._run, name="decoding", daemon=True)

    def start(self) -> None:
        """Begin."""
        self.thread.start()

    def stop(self) -> None:
        """End after the step that is running."""
        self.inbox.put(None)
        self.thread.join()

    def submit(
        self, watcher: Callable[[DecodingRequest], None], prompt: Prompt, **settings: Any
    ) -> concurrent.futures.Future[DecodingRequest]:
        """Ask for a text; see DecodingQueue.submit, whose errors the future raises.

        Args:
            watcher: is called in the worker's thread when more of the text is final, and once it is finished.
            prompt, settings: as in DecodingQueue.submit.
        """
        answer = concurrent.futures.Future[DecodingRequest]()

        def submit() -> None:
            if not answer.set_running_or_notify_cancel():
                return  # the client has gone
            try:
                request = self.requests.submit(prompt, **settings)
            except Exception as error:
                answer.set_exception(error)
            else:
                self.watchers[request.number] = watcher
                answer.set_result(request)

        self.inbox.put(submit)
        return answer

    def cancel(self, request: DecodingRequest) -> None:
        """Drop a request before the next step."""

        def cancel() -> None:
            self.requests.cancel(request)  # nothing happens to one that is finished
            self._tell(request)

        self.inbox.put(cancel)

    def _run(self) -> None:
        while True:
            while not self.inbox.empty() or not len(self.requests):
                job = self.inbox.get()
                if job is None:
                    return
                job()
            finished = self.requests.step()
            for request in [*self.requests.running.values(), *finished]:
                self._tell(request)

    def _tell(self, request: DecodingRequest) -> None:
        """Call the watcher of a request about which there is something new."""
        number = request.number
        if number in self.watchers and (request.finished or self.sent.get(number, "") != request.text):
            self.sent[number] = request.text
            self.watchers[number](request)
            if request.finished:
                del self.watchers[number], self.sent[number]


@dataclass(eq=False)
class Choices:
    """The texts of one call, and the newest of each that has not been taken: a client that reads slowly holds no more.

    Attributes:
        worker: decodes them.
        closed: is called once they are dropped.
        requests: one for each text.
        latest: text and whether it is finished, by index in `requests`.
        changed: whether there is any.
    """

    worker: QueueWorker
    closed: Callable[[], None]
    requests: list[DecodingRequest] = field(default_factory=list)
    latest: dict[int, tuple[str, bool]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def add(self, prompt: Prompt, **settings: Any) -> None:
        """Ask for one more."""
        loop, index = asyncio.get_running_loop(), len(self.requests)

        def tell(request: DecodingRequest) -> None:
            with suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(self._note, index, request.text, request.finished)

        self.requests.append(await asyncio.wrap_future(self.worker.submit(tell, prompt, **settings)))

    def _note(self, index: int, text: str, finished: bool) -> None:
        self.latest[index] = text, finished
        self.changed.set()

    async def news(self) -> dict[int, tuple[str, bool]]:
        """Wait for news; return the newest text of each that has some, and whether it is finished, by index."""
        await self.changed.wait()
        self.changed.clear()
        news, self.latest = self.latest, {}
        return news

    async def wait(self) -> None:
        """Wait until all are finished."""
        left = len(self.requests)
        while left:
            left -= sum(finished for _, finished in (await self.news()).values())

    def close(self) -> None:
        """Drop what is not finished; to be called once."""
        for request in self.requests:
            self.worker.cancel(request)
        self.closed()


class Api:
    """Answers to the requests of `application`.

    Args:
        worker: decodes.
        most: texts that may be asked for and not be finished, over all calls.
        max_tokens: of a text, at most; None for what the model has room for.
    """

    def __init__(self, worker: QueueWorker, most: int, max_tokens: int | None) -> None:
        from starlette import responses

        self.worker, self.most, self.max_tokens, self.responses = worker, most, max_tokens, responses
        self.model, self.open, self.began = worker.requests.model, 0, int(time.time())

    async def models(self, request: Request) -> Response:
        return self.responses.JSONResponse({"object": "list", "data": [self._about()]})

    async def retrieve(self, request: Request) -> Response:
        name = request.path_params["name"]
        return self.responses.JSONResponse(self._about()) if name == self.model.name else self._unknown(name)

    async def completions(self, request: Request) -> Response | _Closing:
        return await self._answer(request, CompletionRequest)

    async def chat(self, request: Request) -> Response | _Closing:
        return await self._answer(request, ChatRequest)

    async def _answer(self, request: Request, kind: type[CompletionRequest] | type[ChatRequest]) -> Response | _Closing:
        """Answer a call, or say in one line why not."""
        try:
            body = await _body(request)
            given = read_call(body, kind)
            if given.model != self.model.name:
                return self._unknown(given.model)
            asked = self._prompts(given)
            count = len(asked) * given.n
            if count > self.most:
                return self._error(400, f"{count} texts in one request; at most {self.most}")
            if self.open + count > self.most:
                return self._error(429, f"{self.open} texts are asked for already, of at most {self.most}")
            return await self._decode(request, given, asked)
        except QueueFull as error:
            return self._error(429, str(error))
        except UserError as error:
            return self._error(413 if str(error).startswith("a request of more") else 400, str(error))

    def _prompts(self, given: CompletionRequest | ChatRequest) -> list[Prompt]:
        """Return the prompts of a call."""
        if not all(isinstance(stop, str) for stop in stop_strings(given)):
            raise UserError(f"stop is {shown(given.stop)}; a string, or a list of them")
        if "" in stop_strings(given):
            raise UserError("stop holds an empty string, which is everywhere")
        if given.n < 1:
            raise UserError(f"n = {given.n}; at least 1")
        most = most_tokens(given)
        if most is not None and most < 1:
            raise UserError(f"max_tokens = {most}; at least 1")
        if self.max_tokens is not None and (most or 1) > self.max_tokens:
            raise UserError(f"max_tokens = {most}; this server writes at most {self.max_tokens}")
        if isinstance(given, ChatRequest):
            ids: list[Any] = self.model.chat_prompts(given.messages)
        else:
            ids = self.model.ids(given.prompt)
        suffix = self.model.encode(given.suffix or "") if isinstance(given, CompletionRequest) else []
        prompts = list[Prompt]()
        for prompt in ids:
            room = LENGTH if self.model.length is None else self.model.length - len(prompt) - len(suffix)
            usual = max(1, min(LENGTH, room, self.max_tokens or LENGTH))
            prompts.append([*prompt, Gap(max=usual if most is None else most), *suffix])
        return prompts

    async def _decode(
        self, request: Request, given: CompletionRequest | ChatRequest, asked: list[Prompt]
    ) -> Response | _Closing:
        seeds = sample_seeds(secrets.randbits(31) if given.seed is None else given.seed, len(asked) * given.n)
        usual = self.model.decoding.sampling
        temperature = usual.temperature if given.temperature is None else given.temperature
        top_p = usual.top_p if given.top_p is None else given.top_p
        how = dataclasses.replace(usual, temperature=temperature, top_p=top_p)
        self.open += len(seeds)

        def closed() -> None:
            self.open -= len(seeds)

        choices = Choices(self.worker, closed)
        try:
            for i, seed in enumerate(seeds):
                await choices.add(asked[i // given.n], sampling=how, seed=[seed], stream=given.stream)
            if given.stream:
                events = self._events(given, choices)
                return _Closing(self.responses.StreamingResponse(events, media_type="text/event-stream"), choices.close)
            if not await _unless_gone(request, choices.wait()):
                return self.responses.Response(status_code=499)
            failed = [r for r in choices.requests if r.state != "done"]
            if failed:
                return self._error(500, str(failed[0].error or failed[0].state))
            return self.responses.JSONResponse(self._body(given, choices, secrets.token_hex(12)))
        finally:
            if not given.stream or len(choices.requests) < len(seeds):
                choices.close()

    async def _events(self, given: CompletionRequest | ChatRequest, choices: Choices) -> AsyncIterator[str]:
        """Yield server-sent events; when the client goes, its texts are dropped."""
        name, sent, ended = secrets.token_hex(12), [""] * len(choices.requests), set[int]()
        while len(ended) < len(choices.requests):
            for index, (text, finished) in (await choices.news()).items():
                asked = choices.requests[index]
                if index in ended or (is_infilling(given) and not finished):
                    continue
                if finished and asked.state != "done":
                    yield _event({"error": {"message": str(asked.error or asked.state), "type": "server_error"}})
                    return
                whole, reason = written_text(given, asked) if finished else final_text(given, text)
                more = whole[len(sent[index]) :]
                if reason is not None:
                    ended.add(index)
                    self.worker.cancel(asked)  # nothing happens to one that is finished
                if more or reason is not None:
                    sent[index] += more
                    yield _event(self._chunk(given, name, index, more, reason))
        if (given.stream_options or {}).get("include_usage"):
            yield _event({**self._head(given, name, True), "choices": [], "usage": self._usage(choices, sent)})
        yield "data: [DONE]\n\n"

    def _head(self, given: CompletionRequest | ChatRequest, name: str, stream: bool) -> Json:
        kind = "text_completion"
        if isinstance(given, ChatRequest):
            kind = "chat.completion.chunk" if stream else "chat.completion"
        id = f"chatcmpl-{name}" if isinstance(given, ChatRequest) else f"cmpl-{name}"
        return {"id": id, "object": kind, "created": int(time.time()), "model": self.model.name}

    def _chunk(
        self, given: CompletionRequest | ChatRequest, name: str, index: int, text: str, reason: str | None
    ) -> Json:
        said: Json = (
            {"delta": {"role": "assistant", "content": text}} if isinstance(given, ChatRequest) else {"text": text}
        )
        choice = {"index": index, **said, "logprobs": None, "finish_reason": reason}
        return {**self._head(given, name, True), "choices": [choice]}

    def _body(self, given: CompletionRequest | ChatRequest, choices: Choices, name: str) -> Json:
        """Return the answer of a call that does not stream."""
        listed = list[Json]()
        for index, request in enumerate(choices.requests):
            text, reason = written_text(given, request)
            said: Json = {"text": text}
            if isinstance(given, ChatRequest):
                said = {"message": {"role": "assistant", "content": text}}
            listed.append({"index": index, **said, "logprobs": None, "finish_reason": reason})
        return {**self._head(given, name, False), "choices": listed, "usage": self._usage(choices, [])}

    def _usage(self, choices: Choices, sent: Sequence[str]) -> Json:
        """Count tokens; of a text that a stop string has ended early, those of what was sent."""
        prompt = sum(int((r.layout.gap_start < 0).sum()) for r in choices.requests)
        text = sum(
            len(self.model.encode(sent[i])) if r.written is None else r.written.tokens
            for i, r in enumerate(choices.requests)
        )
        return {"prompt_tokens": prompt, "completion_tokens": text, "total_tokens": prompt + text}

    def _about(self) -> Json:
        return {"id": self.model.name, "object": "model", "created": self.began, "owned_by": "gen"}

    def _unknown(self, name: str) -> Response:
        return self._error(404, f"there is no model {name!r}; this server has {self.model.name!r}")

    def _error(self, status: int, message: str) -> Response:
        kind = "rate_limit_exceeded" if status == 429 else "invalid_request_error"
        body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
        return self.responses.JSONResponse(body, status)


@dataclass(eq=False)
class _Closing:
    """A response after which something is done, however it ends."""

    response: Any
    close: Callable[[], None]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self.response(scope, receive, send)
        finally:
            self.close()


def _event(body: Json) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


async def _body(request: Request) -> Json:
    """Return the JSON object of a request; UserError if it is none, or too large."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/json":  # which forms of other sites cannot send
        raise UserError(f"the content type is {kind!r}; expected application/json")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise UserError(f"a request of more than {MAX_BODY:,} bytes")
    given = parse_json(body.decode("utf-8", "replace"), "the request")
    if not isinstance(given, dict):
        raise UserError("the request is no JSON object")
    return given


async def _unless_gone(request: Request, work: Coroutine[Any, Any, None]) -> bool:
    """Wait for some work; return False if the client goes before it is done."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].done()
    finally:
        for task in tasks:
            task.cancel()


def application(
    worker: QueueWorker, most: int = 1024, max_tokens: int | None = None, hosts: Sequence[str] = LOCAL
) -> Starlette:
    """Return the web application: /v1/models, /v1/completions and /v1/chat/completions.

    Args:
        worker: decodes.
        most: texts that may be asked for and not be finished; more are refused with status 429.
        max_tokens: of a text, at most; None for what the model has room for.
        hosts: names by which the server may be called; "*" for any.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.routing import Route

    api = Api(worker, most, max_tokens)
    return Starlette(
        routes=[
            Route("/v1/models", api.models),
            Route("/v1/models/{name:path}", api.retrieve),
            Route("/v1/completions", api.completions, methods=["POST"]),
            Route("/v1/chat/completions", api.chat, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
    )


def serve(
    requests: DecodingQueue,
    listening: socket.socket,
    most: int = 1024,
    max_tokens: int | None = None,
    hosts: Sequence[str] = LOCAL,
) -> None:
    """Serve until interrupted.

    Args:
        requests: the queue.
        listening: a socket that listens.
        most, max_tokens, hosts: as of `application`.

    Raises:
        MissingDependency: without starlette and uvicorn.
    """
    try:
        import uvicorn

        worker = QueueWorker(requests)
        app = application(worker, most, max_tokens, hosts)
    except ImportError as error:
        raise MissingDependency(
            f"the server needs starlette and uvicorn ({error}): pip install 'gen-diffusion[serve]'"
        ) from None
    worker.start()
    try:
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")).run(
            sockets=[listening]
        )
    finally:
        worker.stop()

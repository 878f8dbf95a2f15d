"""The server of text models, called by OpenAI's own client on this machine."""

import asyncio
import dataclasses
import http.client
import threading
import time

import openai
import pytest
import torch
import uvicorn

import gen
from gen.cli import main
from gen.config.spec import override
from gen.eval.arena.server import bound
from gen.models.text import Text
from gen.samplers.block_schedules.semi_ar import SemiAR
from gen.text.batching import DecodingQueue
from gen.text.chat import ChatTemplate
from gen.text.decoding import Decoding, TokenSampling
from gen.text.gaps import Gap
from gen.text.pipeline import TextPipeline
from gen.text.server import Choices, QueueWorker, application
from gen.text.tokenizers.bytes import Bytes
from gen.training.recipes.lists import lists


def model_of(delay=0.0, **how):
    """A network that has not learnt; each forward takes some time."""
    torch.manual_seed(0)
    spec = Text(length=160, width=16, depth=1, heads=2, tokenizer=Bytes())
    net = spec.build().double().eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.3)
    net.register_forward_pre_hook(lambda *_: time.sleep(delay))
    how = Decoding(**{"policy": "topk", "block_schedule": SemiAR(8), "sampling": TokenSampling(1.0), **how})
    return TextPipeline(net, Bytes(), how, length=160, name="tiny")


class Served:
    """A server in a thread; `client` and `loop` clients call it."""

    def __init__(self, model, most=64, max_tokens=None, **queue):
        self.model, self.queue = model, DecodingQueue(model, **queue)
        self.worker, self.listening = QueueWorker(self.queue), bound("127.0.0.1", 0)
        app = application(self.worker, most, max_tokens)
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listening]})
        self.root = f"http://127.0.0.1:{self.listening.getsockname()[1]}/v1"

    def __enter__(self):
        self.worker.start()
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join()
        self.worker.stop()
        self.listening.close()

    def client(self, kind=openai.OpenAI):
        return kind(base_url=self.root, api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def served():
    with Served(model_of(), max_tokens=100) as served:
        yield served


def same_text(model, prompt, n, seed, index=0, count=1):
    """What generate writes for one choice of a request."""
    return model.generate([prompt] * count, n, seed=seed).texts[index]


def test_completions_are_what_generate_writes(served):
    with served.client() as client:
        assert [one.id for one in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").owned_by == "gen"
        made = client.completions.create(model="tiny", prompt=["ab", "c"], max_tokens=12, seed=5, n=2, user="me",
                                         presence_penalty=0, logit_bias={}, echo=False, best_of=1)  # fmt: skip
        texts = served.model.generate(["ab", "ab", "c", "c"], 12, seed=5)
        assert [choice.text for choice in made.choices] == texts.texts
        assert [c.finish_reason for c in made.choices] == ["stop" if r == "eos" else "length" for r in texts.reasons]
        assert made.usage.prompt_tokens == 6 and made.usage.completion_tokens == texts.tokens
        cold = client.completions.create(model="tiny", prompt=[97, 98], max_tokens=9, temperature=0)
        assert cold.choices[0].text == served.model.generate("ab", 9, temperature=0).texts[0]
        narrow = client.completions.create(model="tiny", prompt="a", max_tokens=9, temperature=0.7, top_p=0.5, seed=1)
        sampling = TokenSampling(0.7, 0.5)
        assert narrow.choices[0].text == served.model.generate("a", 9, seed=1, sampling=sampling).texts[0]
        usual = client.completions.create(model="tiny", prompt="a" * 150, seed=1)
        assert usual.choices[0].text == served.model.generate("a" * 150, seed=1).texts[0]


def test_a_suffix_makes_it_infilling(served):
    with served.client() as client:
        how = {"model": "tiny", "prompt": "def f(", "suffix": "return x", "max_tokens": 10, "seed": 3}
        fill = served.model.generate(["def f(", Gap(max=10), "return x"], seed=3).fills[0][0]
        assert client.completions.create(**how).choices[0].text == fill
        assert "".join(part.choices[0].text for part in client.completions.create(**how, stream=True)) == fill


def test_streams_are_final_text_that_only_grows(served):
    with served.client() as client:
        how = {"model": "tiny", "prompt": ["é", "b"], "max_tokens": 40, "seed": 2, "stream": True}
        parts = [*client.completions.create(**how, stream_options={"include_usage": True})]
        for i in range(2):
            own = [part.choices[0] for part in parts if part.choices and part.choices[0].index == i]
            assert "".join(c.text for c in own) == served.model.generate(["é", "b"], 40, seed=2).texts[i]
            assert len(own) > 1 and [c.finish_reason for c in own[:-1]] == [None] * (len(own) - 1)
            assert own[-1].finish_reason in ("stop", "length")
        assert parts[-1].usage.completion_tokens > 0


def test_a_client_that_reads_slowly_holds_one_text_of_each_choice(served):
    """Of 40 steps nothing is read until all are done: the newest text replaces the ones before it."""

    async def call():
        choices = Choices(served.worker, lambda: None)
        for prompt in ("a", "b"):
            await choices.add([*prompt.encode(), Gap(max=40)], seed=[4], stream=True)
        while not all(request.finished for request in choices.requests):
            await asyncio.sleep(0.01)
            assert len(choices.latest) <= 2
        await asyncio.sleep(0.05)  # for what the worker has told the loop
        news = await choices.news()
        assert {i: finished for i, (_, finished) in news.items()} == {0: True, 1: True} and not choices.latest

    asyncio.run(call())


def test_local_names_of_this_machine_are_answered_and_others_are_not(served):
    for host, status in (("127.0.0.1:8000", 200), ("[::1]:8000", 200), ("localhost", 200), ("evil.example", 400)):
        connection = http.client.HTTPConnection(*served.listening.getsockname()[:2])
        connection.request("GET", "/v1/models", headers={"Host": host})
        assert connection.getresponse().status == status
        connection.close()


def test_a_stop_string_ends_a_text(served):
    with served.client() as client:
        how = {"model": "tiny", "prompt": "b", "max_tokens": 40, "seed": 2}
        whole = client.completions.create(**how).choices[0].text
        stops = ["never", whole[9:12], whole[20:23]]
        end = min(whole.index(stop) for stop in stops if stop in whole)
        choice = client.completions.create(**how, stop=stops).choices[0]
        assert (choice.text, choice.finish_reason) == (whole[:end], "stop") and end > 2
        how |= {"stop": stops, "stream": True, "stream_options": {"include_usage": True}}
        *parts, last = client.completions.create(**how)
        assert "".join(part.choices[0].text for part in parts) == whole[:end]
        assert [part.choices[0].finish_reason for part in parts][-1] == "stop" and last.usage.completion_tokens > 0


class Chatty(Bytes):
    """Bytes whose messages are marked by who says them."""

    special_tokens = ()
    chat = ChatTemplate("{% for m in messages %}{{ m.role[0] }}:{{ m.content }}|{% endfor %}a:")

    def encode_template(self, text, break_):
        return self.encode(text)


def test_chats_are_rendered_by_the_model_s_template():
    model = dataclasses.replace(model_of(), tokenizer=Chatty())
    said = [{"role": "user", "content": "hi"}]
    with Served(model) as served, served.client() as client:
        how = {"model": "tiny", "messages": said, "max_completion_tokens": 9, "seed": 3}
        text = model.chat(said, 9, seed=3).texts[0]
        choice = client.chat.completions.create(**how).choices[0]
        assert client.chat.completions.create(**how).id.startswith("chatcmpl-")
        assert (choice.message.role, choice.message.content) == ("assistant", text)
        stream = client.chat.completions.create(**how, stream=True)
        assert "".join(part.choices[0].delta.content for part in stream) == text


def test_wrong_requests_are_refused_in_one_line(served):
    with served.client() as client:
        for kind, match, how in (
            (openai.NotFoundError, "there is no model 'gpt'; this server has 'tiny'", {"model": "gpt"}),
            (
                openai.BadRequestError,
                "unknown field 'policy'. Allowed: max_tokens",
                {"extra_body": {"policy": "os:system"}},
            ),
            (openai.BadRequestError, "logprobs = 3: this server cannot do that; leave logprobs out", {"logprobs": 3}),
            (openai.BadRequestError, "presence_penalty = 0.5: this", {"presence_penalty": 0.5}),
            (
                openai.BadRequestError,
                "400 - temperature: got 'hot', expected a number or none",
                {"temperature": "hot"},
            ),
            (openai.BadRequestError, "stop holds an empty string", {"stop": ["x", ""]}),
            (openai.BadRequestError, "stop is .*; a string, or a list of them", {"stop": ["x", 3]}),
            (openai.BadRequestError, "prompts = .*3 1", {"prompt": {"3 1": 2}}),
            (openai.BadRequestError, "prompts = ", {"prompt": [True, False]}),
            (openai.BadRequestError, "a prompt holds the id 1000", {"prompt": [10**30]}),
            (openai.BadRequestError, "max_tokens = 101; this server writes at most 100", {"max_tokens": 101}),
            (openai.BadRequestError, "max_tokens = 0; at least 1", {"max_tokens": 0}),
            (openai.BadRequestError, "temperature", {"temperature": -1.0}),
            (openai.BadRequestError, "n = 0; at least 1", {"n": 0}),
            (openai.BadRequestError, "65 texts in one request; at most 64", {"n": 65}),
            (openai.BadRequestError, "prompts", {"prompt": [1.5]}),
            (
                openai.BadRequestError,
                "prompt 1 has 161 .* its text may have 4: together more.*shorten the prompt by 2 or more",
                {"prompt": "a" * 161},
            ),
            (openai.BadRequestError, "ask for at most 10", {"prompt": "a" * 150, "max_tokens": 64}),
        ):
            with pytest.raises(kind, match=match) as caught:
                client.completions.create(**{"model": "tiny", "prompt": "a", "max_tokens": 4, **how})
            assert "\n" not in caught.value.body["message"]
        with pytest.raises(openai.BadRequestError, match="chat template"):
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}])
        assert client.completions.create(model="tiny", prompt="a", max_tokens=4).choices


def test_full_queues_say_so_and_clients_that_go_free_them():
    with Served(model_of(0.02, sampling=TokenSampling(), stopping_rules=()), most=3, max_rows=1) as served:

        async def calls():
            client = served.client(openai.AsyncOpenAI)
            how = {"model": "tiny", "prompt": "a", "max_tokens": 100}
            stream = await client.completions.create(**how, stream=True)
            plain = [asyncio.ensure_future(client.completions.create(**how)) for _ in range(2)]
            while len(served.queue) < 3:
                await asyncio.sleep(0.01)
            with pytest.raises(openai.RateLimitError, match="3 texts are asked for already, of at most 3"):
                await client.completions.create(**how)
            asked = [*served.queue.running.values(), *served.queue.waiting]
            await stream.close()
            for call in plain:
                call.cancel()
            await asyncio.gather(*plain, return_exceptions=True)
            while len(served.queue):
                await asyncio.sleep(0.01)
            assert [request.state for request in asked] == ["cancelled"] * 3
            assert (await client.completions.create(**{**how, "max_tokens": 3})).choices
            await client.close()

        asyncio.run(calls())


@pytest.mark.slow
def test_two_hundred_requests_at_once_of_which_twenty_go():
    """None of the others is lost, and all are as decoded one after another."""
    model = model_of(kv_plan="dual")
    with Served(model, most=1000, max_rows=16, max_tokens=100) as served:

        async def one(client, i):
            how = {"model": "tiny", "prompt": "ab" * (i % 9), "max_tokens": 1 + i * 7 % 60, "seed": i}
            call = await client.completions.create(**how, stream=i % 3 == 0)
            if i % 3:
                return call.choices[0].text
            return "".join([part.choices[0].text async for part in call])

        async def calls():
            client = served.client(openai.AsyncOpenAI)
            tasks = [asyncio.ensure_future(one(client, i)) for i in range(200)]
            await asyncio.sleep(0.5)
            for i in range(5, 200, 10):
                tasks[i].cancel()
            texts = await asyncio.gather(*tasks, return_exceptions=True)
            await client.close()
            return texts

        texts = asyncio.run(calls())
        assert len(served.queue) == 0 and not served.worker.watchers
    gone = [i for i, text in enumerate(texts) if isinstance(text, asyncio.CancelledError)]
    assert set(gone) <= set(range(5, 200, 10)) and len(gone) >= 10
    for i, text in enumerate(texts):
        if i not in gone:
            assert text == model.generate(["ab" * (i % 9)], 1 + i * 7 % 60, seed=i).texts[0], i


def test_gen_serve_serves_a_run(tmp_path, monkeypatch, capsys):
    small = {"model.width": 16, "model.depth": 1, "model.heads": 2, "steps": 1, "batch_size": 4}
    gen.train(override(lists(), small | {"sample_every": 0, "validate_every": 0}), tmp_path / "run", quiet=True)
    seen = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, sockets: seen.append(server.config.app))
    assert main(["serve", str(tmp_path / "run"), "--port", "0", "--max-rows", "2", "--temperature", "0.5"]) == 0
    assert len(seen) == 1 and "run on http://127.0.0.1:" in capsys.readouterr().out
    assert main(["serve", str(tmp_path / "run"), "--max-rows", "0"]) == 2

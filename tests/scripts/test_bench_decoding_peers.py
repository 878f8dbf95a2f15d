"""The comparison of decoding loops, with a loop of the published ones' form in place of a checkout."""

import time
from types import SimpleNamespace

import pytest
import torch

import scripts.bench_decoding_peers as bench

# One token at a time from left to right, by Fast-dLLM's calls: everything, the text alone, the text among what is kept.
LOOP = """
import torch
from model.modeling_llada import LLaDAModelLM

def logits(model, x, start):
    if CACHE is None:
        return model(x).logits[:, start:]
    past = model(x, use_cache=True).past_key_values
    where = torch.zeros_like(x, dtype=torch.bool)
    where[:, start:] = True
    kept = past if CACHE == "dual" else [tuple(v[:, :, :start] for v in pair) for pair in past]
    more = {"replace_position": where} if CACHE == "dual" else {}
    return model(x[:, start:], past_key_values=kept, use_cache=True, **more).logits
"""


@pytest.mark.parametrize("cache", [None, "prefix", "dual"])
def test_a_network_of_ours_answers_the_calls_of_published_loops(cache, tmp_path) -> None:
    (tmp_path / "llada").mkdir()
    (tmp_path / "llada" / "generate.py").write_text(f"CACHE = {cache!r}{LOOP}", encoding="utf-8")
    module = bench.imported(tmp_path, "v1/llada", "llada")
    net = bench.network({"width": 32, "depth": 2, "heads": 2, "vocab_size": 40, "mask_token_id": 39,
                         "eos_token_ids": ()}, 32).double()  # fmt: skip
    x = torch.randint(39, (2, 24))
    expected = net(x)[:, 10:]
    expected[..., 39] = -torch.inf
    torch.testing.assert_close(module.logits(bench.Adapter(net), x, 10), expected)
    with pytest.raises(SystemExit, match=r"no generate\.py there"):
        bench.imported(tmp_path, ".")


def measured(size, loops):
    args = bench.parsed(["--seconds", "0.01", "--rounds", "6"])
    net = bench.network({"width": 32, "depth": 1, "heads": 1}, 32, size)
    return bench.measure(bench.Setting("tiny", 2, 32, 16), loops, net, args)


def test_loops_are_compared_where_they_write_the_same_tokens() -> None:
    cached = ("published", "ours", lambda net, setting: bench.ours(net, setting, "block"))
    loops = [("ours", None, bench.ours), cached]
    record = measured(bench.BLOCK, loops)
    assert [v["peer"] for v in record["ratios"]] == ["published"] and record["rounds"] == 6
    assert any("tokens/s" in line for line in bench.lines(record | {"attention": "blocks"}))
    wrong = ("wrong", "ours", lambda net, setting: lambda prompts: prompts)
    assert measured(bench.BLOCK, [*loops, wrong])["other_tokens"] == ["wrong and ours"]


@pytest.mark.slow
def test_the_pipeline_of_diffusers_writes_our_tokens() -> None:
    ((_, (size, loops)),) = bench.families(bench.parsed([])).items()
    assert [v["ours"] for v in measured(size, loops)["ratios"]] == ["ours", "ours, exact cache"]


def test_a_step_is_compared_with_its_forward() -> None:
    net = SimpleNamespace(answer=lambda: 3)
    metered = bench.Metered(lambda: time.sleep(0.01), time.perf_counter)
    metered()
    assert 0.01 <= metered.seconds < 1 and bench.Metered(net, time.perf_counter).answer() == 3
    net = bench.network({"width": 32, "depth": 1, "heads": 1}, 32)
    record = bench.overhead(bench.Setting("tiny", 1, 32, 16), net, "dual", time.perf_counter)
    assert record["overhead"]["low"] > 0
    assert ["beside the forward" in v for v in bench.lines(record | {"attention": "all"})] == [True]

"""A text model whose weights are shared out over processes, or left in their file, is the model."""

import pytest
import torch

import gen
from gen.cli import main
from gen.config.errors import UserError
from gen.models.interop.checkpoints import import_checkpoint
from tests.models.interop import test_text as dense
from tests.models.interop import test_text_experts as experts
from tests.models.text_shares import PROMPTS, tokens
from tests.ranks import spread

KINDS = ["llada", "tied", "sdar", "llada2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Four imported models: full and block-causal attention, tied, heads wider than the width, experts."""
    base, runs = tmp_path_factory.mktemp("folders"), tmp_path_factory.mktemp("runs")
    for kind in KINDS:
        if kind in experts.CONFIGS and kind != "sdar":
            state = experts.published(kind, experts.theirs(kind))
            path = experts.write(base / kind, experts.CONFIGS[kind], state)
        else:
            format = "fast_dllm" if kind == "tied" else kind
            config = {"tie_word_embeddings": True} if kind == "tied" else {}
            state = dense.published(format, dense.theirs(format, tied=kind == "tied"))
            path = dense.folder(base / kind, format, state, config, tokenizer=False)
        import_checkpoint(path, out=runs / kind)
    return runs


@pytest.fixture(scope="module")
def ranks(runs, tmp_path_factory):
    return spread("tests.models.text_shares:everything", 2, tmp_path_factory.mktemp("ranks"), RUNS=str(runs))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_two_processes_are_one(runs, ranks, kind, capsys):
    alone = gen.load(runs / kind)
    made = alone.generate(PROMPTS, 12, stopping_rules=())
    texts = torch.cat([d.text(i) for d in made.decoded for i in range(len(d.nfe))])
    logits = gen.load(runs / kind, dtype="float64").net(tokens())
    assert main(["decode", str(runs / kind), "--prompt", "3 1 4", "--gen-length", "6"]) == 0
    said = [ord(c) for c in capsys.readouterr().out]
    for i, rank in enumerate(ranks):
        tol = 1e-12 if kind in ("llada", "tied", "sdar") else 1e-11
        torch.testing.assert_close(rank[f"{kind} logits"], logits, rtol=tol, atol=tol * float(logits.abs().max()))
        assert torch.equal(rank[f"{kind} logits"], ranks[0][f"{kind} logits"])
        assert torch.equal(rank[f"{kind} texts"], texts)
        assert rank[f"{kind} said"].tolist() == (said if i == 0 else [])
        assert rank[f"{kind} share"] < (0.75 if kind == "tied" else 0.55)
        assert rank["refused"].all()


def test_one_process_and_wrong_options_are_refused(runs, monkeypatch, capsys):
    for how in (
        {"tensor_parallel": 2},
        {"tensor_parallel": 1},
        {"max_memory": {"cpu": "little"}},
        {"max_memory": {"cpu": 10}},
    ):
        with pytest.raises(UserError) as caught:
            gen.load(runs / "llada", **how)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no other dtype"):
        gen.load(runs / "llada", dtype="bfloat16", max_memory={"cpu": SOME["llada"]})
    words = ["decode", str(runs / "llada"), "--prompt", "3 1 4"]
    assert main([*words, "--engine", "packed", "--max-memory", "{}"]) == 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "--engine prepares a model on one device" in said and "give --tensor-parallel too" in said


SOME = {"llada": 75_000, "tied": 75_000, "sdar": 75_000}  # bytes: a block, beside the room that one takes to compute
SOME["llada2"] = 190_000


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_blocks_that_stay_in_their_file_compute_the_same(runs, kind, capsys):
    alone, parted = gen.load(runs / kind), gen.load(runs / kind, max_memory={"cpu": SOME[kind]})
    where = {name: p.device.type for name, p in parted.net.named_parameters()}
    assert set(where.values()) == {"cpu", "meta"} and where["embed.weight"] == "cpu"
    assert torch.equal(parted.net(tokens()), alone.net(tokens()))
    how = {"stopping_rules": ()}
    assert parted.generate(PROMPTS, 12, **how).texts == alone.generate(PROMPTS, 12, **how).texts
    assert torch.equal(parted.net(tokens()), alone.net(tokens()))
    assert {name: p.device.type for name, p in parted.net.named_parameters()} == where
    given = ["decode", str(runs / kind), "--prompt", "3 1 4", "--gen-length", "6"]
    assert main(given) == 0 and main([*given, "--max-memory", f'{{"cpu": {SOME[kind]}}}']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[1]

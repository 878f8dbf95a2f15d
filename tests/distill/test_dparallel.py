"""dParallel: whom its entropy moves, what its views show, what its student is made from, and adapters."""

from types import SimpleNamespace

import pytest
import torch

import gen
from gen.cli import main
from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.data.answers import Answers
from gen.data.lib.shards import ShardPlan
from gen.data.pairs import PairSet
from gen.diffusion.noise import training_noise
from gen.distillers.dparallel import DParallel
from gen.distillers.lib.answers import is_correct, make_answers
from gen.distillers.lib.certainty import certainty_terms, random_block
from gen.samplers.decoding_policies.entropy import Entropy
from gen.samplers.decoding_policies.topk import TopK
from gen.text.decoding import Decoding
from gen.training.distillation import teacher_run
from gen.training.objectives import Batch
from gen.training.objectives.lib.masked import token_batch
from gen.training.trainer import train
from tests.distill.texts import LISTS, Easy, Given, roles, texts, tiny_text

MASK = 4


@pytest.fixture
def teacher(text_teacher):
    return text_teacher


def logits(seed=0, rows=3, length=6):
    made = torch.randn(rows, length, MASK + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (2 * made).requires_grad_()


def test_the_entropy_moves_only_what_is_masked_and_right():
    z = logits()
    x = torch.randint(MASK, (3, 6), generator=torch.Generator().manual_seed(1))
    masked = torch.rand(3, 6, generator=torch.Generator().manual_seed(2)) < 0.6
    right = z[..., :MASK].argmax(-1) == x
    _, entropy, share = certainty_terms(z, x, masked, 0.5, MASK)
    assert 0 < int((masked & right).sum()) < int(masked.sum())
    assert float(share) == pytest.approx(int((masked & right).sum()) / int(masked.sum()))
    (slope,) = torch.autograd.grad(entropy, z)
    moved = slope.abs().amax(-1)
    assert bool((moved[masked & right] > 0).all())
    assert torch.equal(moved[~(masked & right)], torch.zeros_like(moved[~(masked & right)]))
    assert torch.equal(slope[..., MASK], torch.zeros(3, 6, dtype=torch.float64))


def test_the_two_terms_are_means_of_their_own_places():
    z, x = logits(), torch.tensor([[0, 1, 2, 3, 0, 1]] * 3)
    masked = torch.tensor([[1, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 0, 1]]).bool()
    ce, entropy, _ = certainty_terms(z, x, masked, 0.5, MASK)
    logp = z[..., :MASK].log_softmax(-1)
    assert torch.allclose(ce, -logp.gather(-1, x[..., None])[..., 0][masked].mean())
    sharp = (z[..., :MASK] / 0.5).softmax(-1)
    right = masked & (logp.argmax(-1) == x)
    assert torch.allclose(entropy, -(sharp * sharp.log()).sum(-1)[right].mean())


@pytest.mark.parametrize("masked", [False, True])
def test_a_view_with_nothing_right_has_no_entropy_and_a_finite_gradient(masked):
    z = logits()
    x = z[..., :MASK].argmin(-1)
    ce, entropy, _ = certainty_terms(z, x, torch.full((3, 6), masked), 0.5, MASK)
    assert entropy.item() == 0 and (ce.item() > 0) is masked
    (slope,) = torch.autograd.grad(ce + 2 * entropy, z)
    assert bool(torch.isfinite(slope).all())


@pytest.mark.parametrize("block", [2, 3, None])
def test_the_views_complement_each_other_in_one_block(block):
    x = torch.arange(10).remainder(MASK).expand(40, 10)
    net = Given(torch.zeros(10, MASK + 1, dtype=torch.float64), MASK)
    batch = texts(x, 2, torch.arange(40) % 5 + 5)
    tokens = token_batch(batch, net)
    DParallel(block=block).loss(net, batch)
    first, second = (view == MASK for view in net.seen[0].chunk(2))
    inside = random_block(net, tokens, block, batch.noise.uniform("block"))
    assert bool((first | second).eq(inside | (first & second)).all())  # what only one masks is all of the block
    assert torch.equal(first ^ second, inside) and not bool((first & second & inside).any())
    places = torch.arange(10)
    lo = torch.where(inside, places, 99).amin(1, keepdim=True)
    hi = torch.where(inside, places, -1).amax(1, keepdim=True)
    assert torch.equal(first & second, tokens.trained & (places > hi))
    assert torch.equal(inside, tokens.trained & (places >= lo) & (places <= hi))  # in one piece
    if block is None:
        assert torch.equal(inside, tokens.trained)
    else:
        assert bool(((lo[:, 0] - 2) % block == 0).all())
        assert bool(((hi + 1 - lo)[:, 0] == torch.minimum(torch.tensor(block), tokens.length - lo[:, 0])).all())
        assert len(set(lo[:, 0].tolist())) == -(-7 // block)  # every block has its turn


def test_the_blocks_of_a_block_causal_network_are_its_own():
    net = Given(torch.zeros(10, MASK + 1), MASK, block=4)
    tokens = token_batch(texts(torch.zeros(30, 10, dtype=torch.int64), 3, 9), net)
    rows = {tuple(row.nonzero()[:, 0].tolist()) for row in random_block(net, tokens, 32, torch.linspace(0, 0.999, 30))}
    assert rows == {(3,), (4, 5, 6, 7), (8,)}


def test_one_view_alone_is_the_loss_of_cap():
    x = torch.arange(6).remainder(MASK).expand(8, 6)
    net = Given(logits(rows=1)[0].detach(), MASK)
    batch = texts(x, 0, 6)
    both, one = (DParallel(block=None, complementary=c).loss(net, batch)[0] for c in (True, False))
    masked = net.seen[1] == MASK
    ce, entropy, _ = certainty_terms(net.table.expand(8, -1, -1), x, masked, 0.5, MASK)
    assert torch.allclose(one, ce + 2 * entropy)
    ce, entropy, _ = certainty_terms(net.table.expand(8, -1, -1), x, ~masked, 0.5, MASK)
    assert torch.allclose(both - one, ce + 2 * entropy)


def test_a_table_that_is_right_becomes_certain():
    """At beta 0 a fair coin stays one; with the entropy it does not, though nothing else tells it to."""
    x = torch.tensor([[0], [1]] * 16)
    entropies = {}
    for beta in (0.0, 2.0):
        net = Given(torch.tensor([[0.3, 0.0, -9, -9, 0]]).double(), MASK)
        optim = torch.optim.Adam(net.parameters(), 0.1)
        for step in range(40):
            loss = next(DParallel(beta=beta, block=None)(roles(net), texts(x, 0, 1, step)))[1]
            optim.zero_grad()
            loss.backward()
            optim.step()
        p = net.table.detach()[0, :MASK].softmax(-1)
        entropies[beta] = float(-(p * p.log()).sum())
    assert entropies[0.0] == pytest.approx(0.693, abs=0.02) and entropies[2.0] < 0.5


def test_answers_are_the_teacher_s_own_and_right(teacher, tmp_path):
    taught = gen.load(teacher)
    everything = make_answers(taught, LISTS, tmp_path / "all", 60, only_correct=False, plan=ShardPlan(25, quiet=True))
    right = make_answers(taught, LISTS, tmp_path / "right", 60, plan=ShardPlan(25, quiet=True))
    rows, kept = (a.open("train").columns for a in (everything, right))
    prompts = [x[:p].tolist() for x, p in zip(rows["x"], rows["prompt"], strict=True)]
    lengths = (rows["length"] - rows["prompt"]).tolist()
    again = taught.generate(prompts, lengths, policy="topk")
    texts_ = [taught.text(x[p:n]) for x, p, n in zip(rows["x"], rows["prompt"], rows["length"], strict=True)]
    assert texts_ == again.texts
    words = [taught.tokenizer.decode(p).split() for p in prompts]
    true = [LISTS.right(p, t.split()) for p, t in zip(words, texts_, strict=True)]
    assert true == [
        is_correct(LISTS, p, x[len(p) : len(p) + n].tolist())
        for p, x, n in zip(prompts, rows["x"], lengths, strict=True)
    ]
    assert 0 < sum(true) < len(true)
    chosen = rows["x"][torch.tensor(true)]
    assert torch.equal(kept["x"][: len(chosen)], chosen[: len(kept["x"])])
    x, when = rows["x"], rows["commit_step"]
    inside = (torch.arange(x.shape[1]) >= rows["prompt"][:, None]) & (
        torch.arange(x.shape[1]) < rows["length"][:, None]
    )
    assert torch.equal(when >= 0, inside)
    stops = x == taught.net.eos_token_ids[0]
    assert bool(stops[~inside & (torch.arange(x.shape[1]) >= rows["length"][:, None])].all())


class Open(Easy):
    """Lists whose items do not say where a window ends."""

    def open(self, split):
        data = super().open(split)
        return PairSet({k: torch.stack([data[i][k] for i in range(40)]) for k in ("x", "prompt")}, "open")


@pytest.mark.parametrize("block_size", [None, 4])
def test_answers_do_not_tell_how_long_they_are_where_the_data_do_not(teacher, tmp_path, block_size):
    """A student sees the end-of-text tokens behind its teacher's answers as far as behind the data's own."""
    source, taught = Open(("copy",), low=2, high=3, items=5, n=400), gen.load(teacher)
    answers = make_answers(taught, source, tmp_path, 30, only_correct=False, plan=ShardPlan(quiet=True))
    rows = answers.open("train").columns
    stop, n = taught.net.eos_token_ids[0], LISTS.shape[0]
    assert "length" not in rows
    texts_ = zip(rows["x"], rows["prompt"].tolist(), strict=True)
    first = [next((i for i in range(p, n) if x[i] == stop), n - 1) for x, p in texts_]
    assert all(set(x[i + 1 :].tolist()) <= {stop} for x, i in zip(rows["x"], first, strict=True)) and min(first) < n - 4
    net = SimpleNamespace(block_size=block_size, eos_token_ids=(stop,))
    found = []
    for step in range(50):
        batch = Batch(rows["x"], {"prompt": rows["prompt"]}, training_noise(0, step, range(len(first))), step=step)
        found.append(token_batch(batch, net).length.tolist())
    for i, each in zip(first, zip(*found, strict=True), strict=True):
        assert set(each) == ({min(n, (i // 4 + 1) * 4)} if block_size else set(range(i + 1, n + 1)) & set(each))
        assert block_size or i > n - 3 or len(set(each)) > 2


def test_a_store_is_resumed_and_knows_its_own(teacher, tmp_path):
    taught, place = gen.load(teacher), tmp_path / "answers"
    whole = make_answers(taught, LISTS, place, 50, plan=ShardPlan(20, quiet=True)).open("train")
    checkpoints.read(place / "shard-00001")
    (place / "shard-00001").rename(tmp_path / "away")
    with pytest.raises(UserError, match="holds 2 of 3 shards"):
        Answers(str(place), LISTS).open("train")
    again = make_answers(taught, LISTS, place, 50, plan=ShardPlan(20, quiet=True))
    assert again.open("train").fingerprint == whole.fingerprint
    assert again == build("data", spec_of(again)) and again.shape == LISTS.shape
    with pytest.raises(UserError, match=r"another store: right differ\. Choose another folder"):
        make_answers(taught, LISTS, place, 50, only_correct=False, plan=ShardPlan(20, quiet=True))
    nested = make_answers(taught, again, tmp_path / "nested", 50, plan=ShardPlan(20, quiet=True))
    assert nested.of == LISTS and nested.open("train").fingerprint == whole.fingerprint


def test_a_teacher_that_is_never_right_is_told_so(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(type(LISTS), "right", lambda *words: False)
    answers = make_answers(gen.load(teacher), LISTS, tmp_path, 20, plan=ShardPlan(quiet=True))
    with pytest.raises(UserError, match="no right answer to 20 prompts"):
        answers.open("train")


def test_the_command_makes_a_student(teacher, tmp_path, capsys):
    folder = tmp_path / "student"
    options = ["--steps", "4", "--objective.prompts", "80", "--objective.block", "3", "--validate_every", "4"]
    assert main(["distill", "dparallel", "--teacher", str(teacher), "--out", str(folder), *options]) == 0
    student = gen.load(folder)
    assert isinstance(student.decoding, Decoding) and student.decoding.policy == Entropy()
    assert student.data.path == str(folder / "answers") and student.tokenizer == LISTS.tokenizer
    assert len(student.generate("copy : a b =", 4).texts) == 1
    assert "validation loss" in capsys.readouterr().out
    before, after = (gen.load(f, weights="raw").net.state_dict() for f in (teacher, folder))
    assert any(not torch.equal(before[k], after[k]) for k in before)
    assert gen.load(teacher).decoding.policy == TopK()


def test_a_student_may_be_adapters_and_those_of_an_older_gen_load(teacher, tmp_path):
    lines = {"steps": 4, "save_every": 2, "objective.prompts": 60, "lora.rank": 2}
    for folder, steps in (("whole", 4), ("halves", 2), ("halves", 4)):
        gen.distill("dparallel", teacher, tmp_path / folder, changes=lines | {"steps": steps}, quiet=True)
    whole, halves = (checkpoints.read(tmp_path / folder / "final") for folder in ("whole", "halves"))
    assert whole["files"] == halves["files"]
    begun, net = gen.load(teacher).net.state_dict(), gen.load(tmp_path / "whole").net
    moved = {name for name, weight in net.state_dict().items() if not torch.equal(weight, begun[name])}
    assert moved == {n for n, w in begun.items() if w.ndim == 2 and n not in ("embed.weight", "head.weight")}

    old = tmp_path / "old" / "checkpoints" / "step-0000004"  # the weights with adapters added in, and them beside it
    weights = {"net.safetensors": net.state_dict(), "net-ema.safetensors": net.state_dict()}
    files = weights | {"lora.safetensors": {"x": torch.ones(1)}, "state/lora.safetensors": {"x": torch.ones(1)}}
    spec = whole["run"] | {"lora": None, "objective": whole["run"]["objective"] | {"lora_rank": 2}}
    about = {key: value for key, value in whole.items() if key not in ("format", "files", "sha256")}
    checkpoints.write(old, files, about | {"run": spec})
    loaded = gen.load(tmp_path / "old").net
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), net.parameters(), strict=True))
    with pytest.raises(UserError, match=r"of an older gen, .*start from them by --init .* --lora.rank 2$"):
        train(teacher_run(old), tmp_path / "on", resume=str(old), quiet=True)


def test_pictures_are_refused(tmp_path, monkeypatch):
    method = DParallel()
    with pytest.raises(UserError, match="DParallel trains networks that predict masked tokens"):
        method.roles(torch.nn.Linear(2, 2), None)
    monkeypatch.setattr("gen.distillers.lib.answers.load", lambda folder: None)
    with pytest.raises(UserError, match=r"DParallel distils text models, which are decoded, and .* is none"):
        DParallel().student(tiny_text(), tmp_path, tmp_path)

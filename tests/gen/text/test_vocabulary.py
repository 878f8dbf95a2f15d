"""Passes over the vocabulary: their results are the plain formulas', and their number does not grow unseen."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gen.samplers.decoding_policies.edit import Edit
from gen.samplers.decoding_policies.threshold import Threshold
from gen.samplers.decoding_policies.topk import TopK
from gen.text.decoding import Decoding, TokenSampling
from gen.text.loop import decode_steps
from gen.text.ties import TIE, descending
from gen.text.vocabulary import draw, entropy, largest, likeliest, log_probabilities
from tests.gen.predictors import Table

SHARPNESS = {"normal": 1.0, "peaked": 6.0, "flat": 1e-3, "equal": 0.0}


def plain_likeliest(logp):
    return (logp >= logp.amax(-1, keepdim=True) - TIE).to(torch.uint8).argmax(-1)


def plain_draw(logp, u, temperature, top_p, top_k):
    """The definition, with everything sorted and normalised."""
    logp = (logp.double() / temperature).log_softmax(-1)
    if top_k is not None:
        logp = logp.masked_fill(logp < logp.topk(top_k, -1).values[..., -1:] - TIE, -torch.inf)
    if top_p < 1:
        index = descending(logp)
        ordered = logp.softmax(-1).gather(-1, index)
        excluded = ordered.cumsum(-1) - ordered >= top_p - TIE
        logp = logp.masked_fill(excluded.gather(-1, index.argsort(-1)), -torch.inf)
    sums = logp.softmax(-1).cumsum(-1)
    return torch.searchsorted(sums, (u * sums[..., -1])[..., None], right=True)[..., 0]


@pytest.mark.parametrize("kind", SHARPNESS)
@pytest.mark.parametrize("size", [7, 257, 5000, 20001])
def test_results_are_those_of_the_plain_formulas(size, kind, monkeypatch):
    monkeypatch.setattr("gen.text.vocabulary.CACHED", 3 * size)  # several parts
    generator = torch.Generator().manual_seed(size)
    logits = SHARPNESS[kind] * torch.randn(2, 4, size, generator=generator)
    given, suppressed = logits.clone(), torch.tensor([size - 1, 0])
    logp = log_probabilities(logits, suppressed)
    assert torch.equal(logits, given)
    assert torch.equal(logp, logits.index_fill(-1, suppressed, -torch.inf).log_softmax(-1))
    top = likeliest(logp)
    assert torch.equal(top, plain_likeliest(logp))
    assert torch.equal(likeliest(logp, top), plain_likeliest(logp.scatter(-1, top[..., None], -torch.inf)))
    assert torch.equal(largest(logp, 3), logp.topk(3, -1).values[..., -1:])
    torch.testing.assert_close(entropy(logp), torch.special.entr(logp.exp()).sum(-1))
    u = torch.rand(2, 4, dtype=torch.float64, generator=generator)
    for wide in (logp, logp.double()):
        kept = wide.clone()
        for how in ((1.0, 1.0, None), (0.7, 1.0, 3), (1.0, 0.9, None), (1.3, 0.3, 5), (0.01, 0.9, None)):
            assert torch.equal(draw(wide, u, *how), plain_draw(wide, u, *how)), how
        assert torch.equal(wide, kept)


def test_no_token_of_a_flat_distribution_need_lie_above_the_cut(monkeypatch):
    """As with 126,464 equal tokens, none of which has a hundred thousandth."""
    monkeypatch.setattr("gen.text.vocabulary.CUT", 1e-3)
    logp = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.0], [1e-3], [0.1]])
    logp, u = logp.log_softmax(-1), torch.tensor([0.2, 0.5, 0.8])
    assert torch.equal(draw(logp, u, 1.0, 0.9, None), plain_draw(logp, u, 1.0, 0.9, None))


def test_a_group_of_equals_across_the_cut_is_not_divided():
    """Half of the probability lies in one token, half in equal ones that are all below the cuts or at them."""
    logits = torch.zeros(1, 200_000)
    logits[0, 150_000] = torch.tensor(200_000.0).log()
    logp = logits.log_softmax(-1)
    for u in (0.1, 0.6, 0.9, 0.999):
        wanted = torch.tensor([u], dtype=torch.float64)
        assert torch.equal(draw(logp, wanted, 1.0, 0.7, None), plain_draw(logp, wanted, 1.0, 0.7, None))


class Passes(TorchDispatchMode):
    """Counts the numbers that operations read or write, of tensors with at least a vocabulary of them."""

    def __init__(self, size):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        touched = out if func in FEW else (args, kwargs, out)
        tensors = [t for t in torch.utils._pytree.tree_leaves(touched) if isinstance(t, torch.Tensor)]
        if not func.is_view and func is not torch.ops.aten.index_fill_.int_Scalar:
            self.count += max((t.numel() for t in tensors if t.numel() >= self.size), default=0)
        return out


FEW = {torch.ops.aten.gather.default, torch.ops.aten.index.Tensor}  # they read what they return


class Given(Table):
    """A network whose logits take no pass."""

    def __call__(self, tokens, lengths=None, positions=None):
        return self.table[: len(tokens)]


@pytest.mark.parametrize(
    ("sampling", "policy", "bound"),
    [
        (TokenSampling(), TopK(1), 3),  # copied, normalised, maxima of blocks
        (TokenSampling(), Threshold(), 3),
        (TokenSampling(1.0), TopK(1), 6),  # of masks, half of all: gathered, maximum, widened, shifted, exp, sums
        (TokenSampling(1.0, top_p=0.9), TopK(1), 7),  # and half of: compared and found
        (TokenSampling(1.0), Edit(), 6),
    ],
    ids=["greedy", "threshold", "temperature", "top_p", "edit"],
)
def test_a_step_passes_over_the_vocabulary_so_many_times(sampling, policy, bound):
    rows, window, size = 2, 8, 40_000
    table = 8 * torch.randn(rows, window, size, generator=torch.Generator().manual_seed(0))
    how = Decoding(policy, stopping_rules=(), sampling=sampling)
    steps = decode_steps(Given(table=table, words=size - 1), [[1]] * rows, window, how, seed=0)
    next(steps)  # the storage is allocated
    counted, n = Passes(size), 0
    with counted:
        for _ in steps:
            n += 1
    assert counted.count / (n * rows * window * size) < bound + 0.2


def test_tokens_are_proposed_for_masks_and_for_what_a_policy_edits():
    seen = []

    class Watching(TopK):
        def select(self, view, state):
            seen.append((view.sampled != view.tokens, view.masked, view.logp.data_ptr()))
            return super().select(view, state)

    table = torch.zeros(9, 5000)
    for edits in (False, True):
        Watching.edits, seen[:] = edits, []
        how = Decoding(Watching(1), stopping_rules=(), sampling=TokenSampling(1.0))
        for _ in decode_steps(Table(table=table), [[1]], 8, how, seed=0):
            pass
        assert any(bool((drawn & ~masked).any()) for drawn, masked, _ in seen) == edits
        assert len({storage for *_, storage in seen}) == 1

"""The contracts of gen.text, held by minimal examples that lie outside of the package.

Built-in plug-ins are held to the same laws in tests/samplers; here it is shown that a user's own file is enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import gen
from gen.cli import main
from gen.config.errors import UserError
from gen.config.spec import build, override, spec_of
from gen.models.text import Text
from gen.text.contracts import Predictor, Tokenizer
from gen.text.decoding import Decoding
from gen.text.loop import decode, decode_steps
from gen.text.mask_path import MaskPath
from gen.text.pipeline import TextPipeline
from gen.text.worlds import decoded_distribution, shuffle_joint
from gen.training.recipes.lists import lists
from tests.contracts.my_policy import BarePolicy, MyPolicy
from tests.contracts.my_predictor import MyPredictor
from tests.contracts.my_tokenizer import MyTokenizer

HERE = "tests.contracts"
PARTS = {
    "policy": {"name": f"{HERE}.my_policy:MyPolicy", "count": 2},
    "block_schedule": f"{HERE}.my_block_schedule:MyBlockSchedule",
    "kv_plan": {"name": f"{HERE}.my_kv_plan:MyKvPlan", "full": 2},
    "stopping_rules": [{"name": f"{HERE}.my_stop:MyStop", "tokens": 5}],
}
PROMPTS, LENGTHS = [[1, 2, 3], [4], [5, 6, 7, 8]], [6, 8, 7]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    spec = Text(vocab_size=12, mask_token_id=11, eos_token_ids=(10,), length=16, width=16, depth=2, heads=2)
    net = spec.build().double().eval().requires_grad_(False)
    for weight in net.parameters():
        weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.4)
    return net


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A list model that has hardly learnt, trained on a mask path of one's own."""
    small = {"model.width": 16, "model.depth": 1, "model.heads": 2, "steps": 2, "batch_size": 4, "sample_every": 0}
    own = {"objective": "mdlm", "path": f"{HERE}.my_mask_path:MyMaskPath", "validate_every": 0, "save_every": 0}
    folder = tmp_path_factory.mktemp("runs") / "lists"
    gen.train(override(lists(), small | own), folder, quiet=True)
    return folder


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_ones_own_is_named_by_its_module_and_goes_through_the_loop(net, part):
    """One part at a time beside gen's own: its spec is what builds it, and a text does not depend on its batch."""
    decoding = Decoding(**{part: PARTS[part]})
    given = spec_of(getattr(decoding, part)[0] if part == "stopping_rules" else getattr(decoding, part))
    assert given["name"].startswith(f"{HERE}.") and spec_of(build("samplers", given)) == given
    together = decode(net, PROMPTS, LENGTHS, decoding, seed=[1, 2, 3])
    for i, prompt in enumerate(PROMPTS):
        alone = decode(net, [prompt], LENGTHS[i], decoding, seed=1 + i)
        assert together.text(i).tolist() == alone.text(0).tolist()
        assert (together.nfe[i], together.computed[i]) == (alone.nfe[0], alone.computed[0])
        assert not (together.text(i) == net.mask_token_id).any()


def test_they_go_together(net):
    made = TextPipeline(net, MyTokenizer()).generate(["123", "4", "5678"], LENGTHS, **PARTS)
    assert [len(d) for d in (made.decoded[0].text(i) for i in range(3))] == [5, 5, 5]
    assert made.decoded[0].nfe.tolist() == [3, 3, 3] and made.reasons == [f"{HERE}.my_stop:MyStop"] * 3


@pytest.mark.parametrize("policy", [MyPolicy(), MyPolicy(3), BarePolicy()], ids=["mine", "mine-3", "bare"])
def test_policy_commits_masks_only_and_at_least_one(net, policy):
    before = None
    for step in decode_steps(net, PROMPTS, LENGTHS, Decoding(policy, stopping_rules=())):
        masks = step.tokens == net.mask_token_id
        if before is not None and len(before) == len(masks):
            assert not (masks & ~before).any()
            assert (masks.sum(1) < before.sum(1)).logical_or(~before.any(1)).all()
        before = masks


def test_policy_in_an_order_of_its_own_is_exact_one_token_at_a_time():
    for policy in (MyPolicy(), BarePolicy()):
        found = decoded_distribution(shuffle_joint(4), policy)
        assert found.total_variation < 1e-12 and found.nfe == pytest.approx(4)
    assert decoded_distribution(shuffle_joint(4), MyPolicy(2)).success < 0.9


def test_block_schedule_keeps_within_the_text_and_holds_a_mask():
    schedule = build("samplers.block_schedules", PARTS["block_schedule"])
    masked = torch.tensor([[0, 0, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0]]).bool()
    start, end = torch.tensor([2, 1, 3]), torch.tensor([7, 6, 6])
    window = schedule.window(masked, start, end, None)
    assert window.start.tolist() == [2, 1, 5] and window.stop.tolist() == [6, 6, 6]
    assert schedule.width(9, None) == 9  # the contract's default


def test_kv_plan_that_computes_everything_is_no_cache(net):
    always, never, own = (Decoding("topk", kv_plan=plan, stopping_rules=()) for plan in (
        {**PARTS["kv_plan"], "full": 99}, None, PARTS["kv_plan"]))  # fmt: skip
    exact, plain, cached = (decode(net, PROMPTS, LENGTHS, decoding) for decoding in (always, never, own))
    assert exact.tokens.equal(plain.tokens) and exact.computed.equal(plain.computed)
    assert (cached.computed < plain.computed).all() and (cached.nfe_full == 2).all()


def test_stopping_rule_ends_a_text_where_it_says(net):
    decoding = Decoding("topk", stopping_rules=PARTS["stopping_rules"])
    made = decode(net, PROMPTS, LENGTHS, decoding)
    full = decode(net, PROMPTS, LENGTHS, Decoding("topk", stopping_rules=()))
    assert (made.text_end - made.prompt_end).tolist() == [5, 5, 5]
    assert (made.nfe <= full.nfe).all()


def test_predictor_and_tokenizer_write():
    assert isinstance(MyPredictor(), Predictor) and isinstance(MyTokenizer(), Tokenizer)
    made = TextPipeline(MyPredictor(), MyTokenizer()).generate(["12", "907"], 6, policy=MyPolicy())
    assert made.texts == ["121212", "070707"]
    assert decode(MyPredictor(), [[1, 2]], 4).text(0).tolist() == [1, 2, 1, 2]


def test_mask_path_rises_from_none_to_all_and_trains(run):
    path = build("text.mask_path", f"{HERE}.my_mask_path:MyMaskPath")
    assert isinstance(path, MaskPath)
    t = torch.linspace(0, 1, 101, dtype=torch.float64).requires_grad_()
    m = path.masked_fraction(t)
    assert (m[0], m[-1]) == (0, 1) and bool((m.diff() > 0).all())
    torch.testing.assert_close(torch.autograd.grad(m.sum(), t)[0], path.rate(t.detach()))
    torch.testing.assert_close(path.weight(t.detach()[1:]), 3 / t.detach()[1:])
    assert gen.load(run, allow=("tests",)).info["run"]["path"]["name"] == f"{HERE}.my_mask_path:MyMaskPath"


def test_generate_and_gen_decode_take_them(run, capsys):
    """The names of the command line are those of Python, and so are the texts."""
    plain = {key: value for key, value in PARTS.items() if key != "kv_plan"}
    texts = gen.load(run, allow=("tests",)).generate("copy : a b =", 8, **PARTS).texts
    assert (
        texts
        == gen.load(run, allow=("tests",))
        .generate("copy : a b =", 8, **plain | {"kv_plan": {**PARTS["kv_plan"]}})
        .texts
    )
    line = ["decode", str(run), "--prompt", "copy : a b =", "--gen-length", "8", "--stopping-rules",
            f'[{{"name": "{HERE}.my_stop:MyStop", "tokens": 5}}]', "--policy", PARTS["policy"]["name"],
            "--policy.count", "2", "--block-schedule", PARTS["block_schedule"], "--kv-plan",
            PARTS["kv_plan"]["name"], "--kv_plan.full", "2"]  # fmt: skip
    assert main([*line, "--allow", "tests"]) == 0
    said = capsys.readouterr()
    assert said.out == f"copy : a b = {texts[0]}\n"
    assert "ended by tests.contracts.my_stop:MyStop" in said.err


@dataclass(frozen=True)
class Unfinished:
    """Has some of a policy."""

    may_skip = False

    def init(self, rows, length):
        return {}


@pytest.mark.parametrize("part", ["policy", "block_schedule", "kv_plan"])
def test_what_a_part_lacks_is_said(part):
    with pytest.raises(UserError, match=rf"Decoding.{part}: got .*, expected a name or a spec of .* or an object with"):
        Decoding(**{part: Unfinished()})

"""A network whose tokens are shared out over processes is the network, in outputs, gradients, samples and sites."""

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.models.dit import DiT
from gen.models.engines.sequence import Sequence
from tests.ranks import spread

TIGHT = {"float32": 3e-6, "float64": 1e-13}


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def ranks(request, tmp_path_factory):
    return spread("tests.models.token_shares:everything", request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", TIGHT)
@pytest.mark.parametrize("method", ["ulysses", "ring", "usp"])
@pytest.mark.parametrize("name", ["dit", "lightning_dit"])
def test_output_and_gradients_are_those_of_one_process(ranks, name, method, kind):
    for rank in ranks:
        assert rank[f"{name} {method} {kind} out"] <= TIGHT[kind]
        assert rank[f"{name} {method} {kind} grads"] <= 4 * TIGHT[kind]
        assert torch.equal(rank[f"{name} {method} {kind} sent"], rank[f"{name} {method} {kind} foretold"])


@pytest.mark.slow
def test_every_process_has_the_same_samples(ranks):
    for rank in ranks:
        assert torch.equal(rank["samples"], ranks[0]["samples"])
        torch.testing.assert_close(rank["samples"], rank["samples alone"], rtol=1e-5, atol=1e-5)


def test_one_process_reports_what_is_missing():
    with pytest.raises(UserError, match="needs processes: start them with torchrun"):
        Sequence().prepare(DiT.preset("digits").build())


def test_spec_round_trip():
    for engine in (Sequence("ring"), Sequence("usp", 2)):
        assert build("models.engines", spec_of(engine)) == engine
    for wrong in ({"method": "usp"}, {"method": "ring", "ulysses": 2}):
        with pytest.raises(UserError, match=r"Sequence: ulysses = .* usp needs it, no other has it"):
            Sequence(**wrong)

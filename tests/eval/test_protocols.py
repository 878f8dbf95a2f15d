"""Protocols of the literature set extractor, number and metrics, and allow no others."""

from dataclasses import replace

import numpy as np
import pytest

from gen.config.errors import UserError
from gen.config.spec import build, find, names
from gen.data.digits import Digits
from gen.eval import protocols
from gen.eval.evaluate import evaluate
from gen.eval.protocols import PROTOCOLS, protocol_of
from gen.eval.reference import stack
from tests.eval.test_evaluate import Copier

USUAL = {"n": None, "metrics": None, "extractor": None, "against": "ref.npz"}


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: p.name)
def test_what_a_protocol_names_is_there(protocol) -> None:
    columns = [column.key for spec in protocol.metrics for column in build("eval.metrics", spec).columns]
    assert set(protocol.columns) <= set(columns) and protocol.extractor["name"] in names("eval.features")
    fields = find(protocol.extractor["name"], "eval.features").__dataclass_fields__
    assert set(protocol.extractor) <= {"name", *fields} and protocol.source and protocol.reference


def test_a_protocol_sets_what_it_says_and_no_argument_may_differ() -> None:
    adm = protocol_of("adm-imagenet256")
    given = adm.applied({**USUAL, "extractor": {"name": "inception", "path": "w.pth"}, "seed": 3})
    assert given["n"] == 50_000 and given["seed"] == 3
    assert given["extractor"] == {"name": "inception", "resize": "tf1", "path": "w.pth"}
    for change, says in (
        ({"n": 10_000}, "--protocol adm-imagenet256 sets n: leave them out, or the protocol"),
        ({"metrics": ["kid"]}, "sets metrics"),
        ({"against": None}, "--against VIRTUAL_imagenet256_labeled.npz has to be given"),
        ({"extractor": "dinov2"}, "takes the extractor"),
        ({"extractor": {"name": "inception", "resize": "clean"}}, "takes the extractor"),
    ):
        with pytest.raises(UserError) as error:
            adm.applied({**USUAL, **change})
        assert says in str(error.value)
    with pytest.raises(UserError, match=r"no protocol 'adm'. Allowed: adm-imagenet256, clean-fid"):
        protocol_of("adm")


def test_a_record_names_its_protocol(monkeypatch, tmp_path) -> None:
    mine = replace(protocol_of("edm-cifar10"), name="mine", extractor={"name": "digits_cnn"}, n=40)
    monkeypatch.setattr(protocols, "PROTOCOLS", (mine,))
    images, labels = stack(Digits().open("train"))
    np.savez(tmp_path / "ref.npz", images[:90].movedim(1, -1).numpy())
    how = {"protocol": "mine", "seconds": 0.01}
    record = evaluate(Copier(images, labels), tmp_path / "ref.npz", **how)
    assert record.protocol == "mine" and record.n == 40 and [m.column.key for m in record.metrics] == ["fid"]
    assert "protocol='mine'" in record.command
    np.savez(tmp_path / "few.npz", images[:30].movedim(1, -1).numpy())
    with pytest.raises(UserError, match=r"few.npz holds 30 pictures, --protocol mine takes 40"):
        evaluate(tmp_path / "few.npz", tmp_path / "ref.npz", **how)

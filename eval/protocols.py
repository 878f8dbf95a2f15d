"""Published protocols by name: extractor, number of samples, metrics, and the columns that the field prints.

What a protocol needs and gen cannot ship, weights and reference files, is given beside it: `gen evaluate samples.npz
--protocol adm-imagenet256 --against VIRTUAL_imagenet256_labeled.npz --extractor '{"name": "inception", "path": ...}'`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gen.config.errors import UserError, nearest
from gen.config.spec import Json, name_of

__all__ = ["PROTOCOLS", "EvaluationProtocol", "protocol_of"]


@dataclass(frozen=True)
class EvaluationProtocol:
    """The way in which a table of the literature is measured.

    Attributes:
        name: on the command line and in records.
        extractor: spec that every extractor's spec has to hold; a path of weights beside it.
        n: number of samples.
        metrics: specs, the one that ranks first.
        columns: keys of the columns that the field prints, in its order.
        reference: what has to be given as the reference.
        source: publication, or code.
    """

    name: str
    extractor: Json
    n: int
    metrics: tuple[Json, ...]
    columns: tuple[str, ...]
    reference: str
    source: str

    def applied(self, given: Mapping[str, Any]) -> Json:
        """Return the arguments of an evaluation, the protocol's among them.

        Args:
            given: of gen.evaluate.

        Raises:
            UserError: for an argument that the protocol does not allow, and without a reference.
        """
        own = {"n": self.n, "metrics": list(self.metrics)}
        if other := [key for key, value in own.items() if given[key] not in (None, value)]:
            raise UserError(f"--protocol {self.name} sets {', '.join(other)}: leave them out, or the protocol")
        if given["against"] is None:
            raise UserError(f"--protocol {self.name}: --against {self.reference} has to be given")
        spec = _spec(self.extractor if given["extractor"] is None else given["extractor"])
        differs = [key for key, value in self.extractor.items() if spec.get(key, value) != value]
        if spec.get("name") != self.extractor["name"] or differs:
            raise UserError(f"--protocol {self.name} takes the extractor {self.extractor}, not {spec}")
        return {**given, **own, "extractor": {**self.extractor, **spec}}


def protocol_of(name: str) -> EvaluationProtocol:
    """Return a protocol by name; UserError lists those there are.

    Args:
        name: "adm-imagenet256".
    """
    known = {protocol.name: protocol for protocol in PROTOCOLS}
    if name not in known:
        raise UserError(f"no protocol {name!r}. {nearest(name, known)}")
    return known[name]


def _spec(given: object) -> Json:
    if isinstance(given, str):
        return {"name": given}
    return dict(given) if isinstance(given, Mapping) else {"name": name_of(type(given)), **vars(given)}


OF_TEN_THOUSAND = {"nearest": 5, "reduced_n": 10_000}  # dgm-eval's --nearest_k and --reduced_n
NEIGHBOURS = (
    *({"name": name, "strict": True, **OF_TEN_THOUSAND} for name in ("precision", "recall")),
    *({"name": name, **OF_TEN_THOUSAND} for name in ("density", "coverage")),
)
PROTOCOLS = (
    EvaluationProtocol(
        name="adm-imagenet256",
        extractor={"name": "inception", "resize": "tf1"},
        n=50_000,
        metrics=tuple({"name": name} for name in ("fid", "sfid", "inception_score", "precision", "recall")),
        columns=("fid", "sfid", "inception_score", "precision", "recall"),
        reference="VIRTUAL_imagenet256_labeled.npz",
        source="Dhariwal & Nichol 2021; openai/guided-diffusion, evaluations. Distances are float16 there",
    ),
    EvaluationProtocol(
        name="edm-cifar10",
        extractor={"name": "inception", "resize": "tf1"},
        n=50_000,
        metrics=({"name": "fid"},),
        columns=("fid",),
        reference="cifar10-32x32.npz",
        source="Karras et al. 2022; NVlabs/edm, fid.py. There the least of three seeds is printed, here that of one",
    ),
    EvaluationProtocol(
        name="dgm-eval",
        extractor={"name": "dinov2", "resize": "pil"},
        n=50_000,
        metrics=(
            {"name": "fid"}, {"name": "fd_infinity"}, {"name": "kid_subsets"}, *NEIGHBOURS,
            {"name": "authpct"}, {"name": "vendi"},
        ),
        columns=(
            "fid", "fd_infinity", "kid_subsets", "precision", "recall", "density", "coverage", "authpct", "vendi",
        ),
        reference="the training images, with --training the same",
        source="Stein et al. 2023; layer6ai-labs/dgm-eval. The subsets of 10,000 are drawn without a seed there",
    ),
    EvaluationProtocol(
        name="clean-fid",
        extractor={"name": "inception", "resize": "clean"},
        n=50_000,
        metrics=({"name": "fid"}, {"name": "kid_subsets"}),
        columns=("fid", "kid_subsets"),
        reference="the folder of real images",
        source="Parmar et al. 2022; GaParmar/clean-fid. Subsets of the kernel distance are drawn without a seed there",
    ),
)  # fmt: skip

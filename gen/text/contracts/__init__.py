"""The contracts of decoding, one file each: what a part has to provide, and what it is given.

Each is a Protocol. A plug-in, of gen or of a user ("my_package.module:Class"), is a frozen dataclass that has the
members; one that names the Protocol as its base inherits the defaults written there.
"""

from gen.text.contracts.block_schedule import BlockSchedule, Window, positions_between
from gen.text.contracts.kv_plan import KvPlan, KvStep
from gen.text.contracts.policy import CommitDecision, DecodingPolicy, RowState, StepView
from gen.text.contracts.predictor import KvCache, Predictor, Span
from gen.text.contracts.stopping_rule import StopDecision, StoppingRule
from gen.text.contracts.tokenizer import Tokenizer

__all__ = [
    "BlockSchedule",
    "CommitDecision",
    "DecodingPolicy",
    "KvCache",
    "KvPlan",
    "KvStep",
    "Predictor",
    "RowState",
    "Span",
    "StepView",
    "StopDecision",
    "StoppingRule",
    "Tokenizer",
    "Window",
    "positions_between",
]

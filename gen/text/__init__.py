"""Masked diffusion of text: what this wing offers, with the module that defines it.

    A trained model writes         TextPipeline, GeneratedTexts                                            pipeline
    A decoding is described        Decoding, TokenSampling                                                 decoding
    The loop and its result        decode, decode_steps; Decoded, DecodingStep                       loop, decoding
    Contracts of a model           Predictor (KvCache, Span), Tokenizer                                   contracts
    Contracts of decoding          DecodingPolicy (StepView -> CommitDecision), BlockSchedule (-> Window),
                                   KvPlan (KvStep -> span), StoppingRule (StepView -> StopDecision)       contracts
    The forward process            MaskPath (LogLinear, Cosine ...), corrupt                              mask_path
    Exact distributions            JointDistribution, decoded_distribution -> DecodedDistribution            worlds
    Predictors around predictors   GuidedPredictor, SuppressedPredictor, WrappedPredictor                  wrappers
    Tokenizers                     Bytes, Words, HuggingFace                                             tokenizers

Policies, block schedules, KV plans and stopping rules are plug-ins: gen.samplers.{decoding_policies, block_schedules,
kv_plans, stopping_rules}. Objectives are gen.training.objectives.{mdlm, llada, bd3, fast_dllm}, the network is
gen.models.text.
"""

from gen.text.contracts import (
    BlockSchedule,
    CommitDecision,
    DecodingPolicy,
    KvCache,
    KvPlan,
    KvStep,
    Predictor,
    RowState,
    Span,
    StepView,
    StopDecision,
    StoppingRule,
    Tokenizer,
    Window,
)
from gen.text.decoding import Decoded, Decoding, DecodingStep, TokenSampling
from gen.text.loop import decode, decode_steps
from gen.text.mask_path import MaskPath, corrupt
from gen.text.pipeline import GeneratedTexts, TextPipeline
from gen.text.worlds import DecodedDistribution, JointDistribution, decoded_distribution

__all__ = [
    "BlockSchedule",
    "CommitDecision",
    "Decoded",
    "DecodedDistribution",
    "Decoding",
    "DecodingPolicy",
    "DecodingStep",
    "GeneratedTexts",
    "JointDistribution",
    "KvCache",
    "KvPlan",
    "KvStep",
    "MaskPath",
    "Predictor",
    "RowState",
    "Span",
    "StepView",
    "StopDecision",
    "StoppingRule",
    "TextPipeline",
    "TokenSampling",
    "Tokenizer",
    "Window",
    "corrupt",
    "decode",
    "decode_steps",
    "decoded_distribution",
]

"""Masked diffusion of text: what this wing offers, with the module that defines it.

    A trained model           TextPipeline, GeneratedTexts, StreamedText                                pipeline
    A way to decode           Decoding, TokenSampling; Decoded, the result                              decoding
    The loop                  decode; decode_steps, which yields every DecodingStep                         loop
    Its arguments             layouts, lengths_of                                                        prompts
    Masks in a prompt         Gap                                                                           gaps
    Chats                     ChatTemplate; chat_prompt, chat_pairs                                         chat
    Several texts in one window  document_positions, document_starts                                   documents
    Continuous batching       DecodingQueue: submit(prompt) -> DecodingRequest, step(), cancel(request) batching
    A model                   the contracts Predictor (KvCache, Span) and Tokenizer                    contracts
    Parts of decoding         the contracts DecodingPolicy (StepView -> CommitDecision), BlockSchedule (-> Window),
                              KvPlan (KvStep -> span), StoppingRule (StepView -> StopDecision)         contracts
    A local server            application, serve, for clients of OpenAI's protocol                        server
    The forward process       MaskPath (LogLinear, Cosine ...), corrupt                                mask_path
    Exact joints              JointDistribution, decoded_distribution -> DecodedDistribution              worlds
                              MarkovChain, of texts of any length                                         markov

Plug-ins: gen.text.tokenizers, gen.samplers.{decoding_policies, block_schedules, kv_plans, stopping_rules}. Objectives:
gen.training.objectives.{mdlm, llada, bd3, fast_dllm}. The network: gen.models.text. A part of one's own is named
"my_package.module:Class"; tests/contracts has an example of each.
"""

from gen.text.contracts import BlockSchedule, DecodingPolicy, KvPlan, Predictor, StoppingRule, Tokenizer
from gen.text.decoding import Decoded, Decoding, TokenSampling
from gen.text.gaps import Gap
from gen.text.loop import decode, decode_steps
from gen.text.mask_path import MaskPath
from gen.text.pipeline import GeneratedTexts, StreamedText, TextPipeline
from gen.text.worlds import JointDistribution, decoded_distribution

__all__ = [
    "BlockSchedule",
    "Decoded",
    "Decoding",
    "DecodingPolicy",
    "Gap",
    "GeneratedTexts",
    "JointDistribution",
    "KvPlan",
    "MaskPath",
    "Predictor",
    "StoppingRule",
    "StreamedText",
    "TextPipeline",
    "TokenSampling",
    "Tokenizer",
    "decode",
    "decode_steps",
    "decoded_distribution",
]

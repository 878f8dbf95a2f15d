"""Masked diffusion of text, by module.

    contracts    what a part has to provide and is given, one file each: Predictor (KvCache, Span), Tokenizer,
                 DecodingPolicy (StepView -> CommitDecision), BlockSchedule (-> Window), KvPlan (KvStep -> span),
                 StoppingRule (StepView -> StopDecision)
    mask_path    the forward process: MaskPath (LogLinear, Cosine, ...), corrupt
    decoding     Decoding, the spec of how a text is decoded; TokenSampling; Decoded, the result
    loop         decode, and decode_steps, which yields every step
    pipeline     TextPipeline, a trained model with its tokenizer; GeneratedTexts
    worlds       JointDistribution, a predictor that is exact; decoded_distribution, what a policy makes of it
    tokenizers   Bytes, Words, HuggingFace

Plug-ins of decoding: gen.samplers.{decoding_policies, block_schedules, kv_plans, stopping_rules}. Objectives:
gen.training.objectives.{mdlm, llada, bd3, fast_dllm}. The network: gen.models.text. A part of one's own is named
"my_package.module:Class"; tests/contracts has an example of each.
"""

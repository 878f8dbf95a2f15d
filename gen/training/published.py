"""Recipes with published settings, by name: `gen train dit_xl_2 --dry-run`; gen.training.papers has them by data set.

Nothing was measured here: what their authors report is in gen.training.papers.results.
"""

from gen.training.papers.imagenet import (
    ddt_xl_2,
    dfm_xl_2,
    dit_xl_2,
    lightningdit_xl_1,
    rae_dit_dh_xl,
    reg_xl_2,
    repa_xl_2,
    sit_xl_2,
    urepa_xl_2,
)
from gen.training.papers.pixels import cifar10_ddpmpp, cifar10_dit, imagenet64_edm2_s
from gen.training.papers.students import dmd2_imagenet64, f_distill_imagenet64, meanflow_xl_2, scd_cifar10
from gen.training.papers.text import bd3_owt, fast_dllm_v2_7b, llada_8b_sft, mdlm_lm1b, mdlm_owt
from gen.training.papers.tokenizers import (
    tokenizer_kl_f4,
    tokenizer_kl_f8,
    tokenizer_rae,
    tokenizer_va_vae,
    tokenizer_vq_f4,
)

__all__ = [
    "bd3_owt", "cifar10_ddpmpp", "cifar10_dit", "ddt_xl_2", "dfm_xl_2", "dit_xl_2", "dmd2_imagenet64",
    "f_distill_imagenet64", "fast_dllm_v2_7b", "imagenet64_edm2_s", "lightningdit_xl_1", "llada_8b_sft",
    "mdlm_lm1b", "mdlm_owt", "meanflow_xl_2", "rae_dit_dh_xl", "reg_xl_2", "repa_xl_2", "scd_cifar10", "sit_xl_2",
    "tokenizer_kl_f4", "tokenizer_kl_f8", "tokenizer_rae", "tokenizer_va_vae", "tokenizer_vq_f4", "urepa_xl_2",
]  # fmt: skip

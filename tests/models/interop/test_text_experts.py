"""Folders of text models with experts, in small: the same logits as transformers' modules with the same routers."""

import json

import pytest
import torch

import gen
from gen.config.errors import UserError
from gen.models.interop.checkpoints import import_checkpoint
from tests.models.interop.test_text import SIZES, STOP, VOCAB, folder, tokens

MASK = VOCAB - 1
COMMON = {**SIZES, "rope_theta": 6e5, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False}
COMMON |= {"eos_token_id": STOP, "mask_token_id": MASK, "num_experts": 8, "num_experts_per_tok": 3}
CONFIGS = {
    "llada_moe": {
        **COMMON,
        "model_type": "llada",
        "architectures": ["LLaDAMoEModelLM"],
        "dense_intermediate_size": 48,
        "expert_intermediate_size": 24,
        "shared_expert_intermediate_size": None,
        "moe_layer_freq": [0, 1, 1],
        "norm_topk_prob": None,
        "moe_router_enable_expert_bias": False,
        "moe_router_score_function": "softmax",
        "routed_scaling_factor": 1,
        "partial_rotary_factor": 1,
        "qk_layernorm": True,
        "clip_qkv": None,
    },
    "sdar": {
        **COMMON,
        "model_type": "sdar_moe",
        "architectures": ["SDARMoeForCausalLM"],
        "head_dim": 16,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "block_size": 4,
    },
    "llada2": {
        **COMMON,
        "model_type": "llada2_moe",
        "architectures": ["LLaDA2MoeModelLM"],
        "head_dim": 16,
        "partial_rotary_factor": 0.5,
        "moe_intermediate_size": 24,
        "num_shared_experts": 2,
        "first_k_dense_replace": 1,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": True,
        "score_function": "sigmoid",
        "use_qk_norm": True,
        "use_qkv_bias": False,
        "use_bias": False,
        "rope_scaling": None,
    },
}
del CONFIGS["llada_moe"]["intermediate_size"]
SIZES_OF_BLOCKS = {"llada_moe": None, "sdar": 4, "llada2": 32}


def theirs(kind, dtype=torch.float32):
    """A random module of transformers with this kind's router."""
    from transformers import Glm4MoeConfig, Glm4MoeForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config, rope = CONFIGS[kind], {"rope_theta": 6e5, "rope_type": "default"}
    how = {**SIZES, "rms_norm_eps": 1e-6, "attn_implementation": "eager", "moe_intermediate_size": 24}
    how |= {"num_experts_per_tok": 3, "head_dim": config.get("head_dim", 8)}
    if kind == "llada2":
        how |= {key: config[key] for key in ("n_group", "topk_group", "routed_scaling_factor", "first_k_dense_replace")}
        how |= {"n_routed_experts": 8, "n_shared_experts": 2, "use_qk_norm": True, "num_mtp_layers": 0}
        net = Glm4MoeForCausalLM(Glm4MoeConfig(**how, rope_parameters={**rope, "partial_rotary_factor": 0.5}))
    else:
        dense = [0] if kind == "llada_moe" else []
        how |= {"num_experts": 8, "norm_topk_prob": kind == "sdar", "mlp_only_layers": dense, "rope_parameters": rope}
        net = Qwen3MoeForCausalLM(Qwen3MoeConfig(**how))
    with torch.no_grad():
        for name, weight in (*net.named_parameters(), *net.named_buffers()):
            if not name.endswith("inv_freq"):
                weight.normal_(1.0 if weight.ndim == 1 and "bias" not in name else 0.0, 0.3)
    return net.to(dtype).eval()


def published(kind, net):
    """Its weights under the names of the format: one tensor for each expert, and LLaDA2's q, k and v in one."""
    out = {}
    for name, value in net.state_dict().items():
        stem, _, last = name.rpartition(".mlp.experts.")
        if stem:
            for e, weight in enumerate(value):
                ends = ("gate_proj", "up_proj") if last == "gate_up_proj" else ("down_proj",)
                for end, part in zip(ends, weight.chunk(len(ends)), strict=True):
                    out[f"{stem}.mlp.experts.{e}.{end}.weight"] = part.clone()
        else:
            out[name] = value.clone()
    if kind != "llada2":
        return out
    for i in range(3):
        at = f"model.layers.{i}"
        three = [out.pop(f"{at}.self_attn.{name}_proj.weight") for name in "qkv"]
        out[f"{at}.attention.query_key_value.weight"] = torch.cat(three)
        for new, old in {"dense": "o_proj", "query_layernorm": "q_norm", "key_layernorm": "k_norm"}.items():
            out[f"{at}.attention.{new}.weight"] = out.pop(f"{at}.self_attn.{old}.weight")
        if i:
            out[f"{at}.mlp.gate.expert_bias"] = out.pop(f"{at}.mlp.gate.e_score_correction_bias")
    out["model.word_embeddings.weight"] = out.pop("model.embed_tokens.weight")
    return out


def write(path, config, state):
    folder(path, "dream", state, tokenizer=False)
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_logits_are_those_of_transformers(tmp_path, kind):
    net, x, size = theirs(kind), tokens(45), SIZES_OF_BLOCKS[kind]
    done = import_checkpoint(write(tmp_path / kind, CONFIGS[kind], published(kind, net)), out=tmp_path / "run")
    pipeline, places = gen.load(tmp_path / "run"), torch.arange(45)
    seen = torch.ones(45, 45, dtype=torch.bool) if size is None else places // size <= places[:, None] // size
    mask = torch.zeros(45, 45).masked_fill(~seen, torch.finfo(torch.float32).min)
    expected = net(x, attention_mask=mask.expand(3, 1, -1, -1)).logits
    torch.testing.assert_close(pipeline.net(x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    assert expected.std() > 0.5 and done.origin == kind and not done.dropped
    spec = pipeline.net.spec
    assert (spec.mask_token_id, spec.eos_token_ids, spec.block_size, spec.shift) == (MASK, (STOP,), size, 0)
    made = pipeline.generate([[1, 2, 3], [7]], 9, stopping_rules=())
    assert made.texts == pipeline.generate([[1, 2, 3], [7]], 9, stopping_rules=(), kv_plan=None).texts
    assert (pipeline.decoding.kv_plan is None) == (size is None)


def test_bfloat16_experts_stay_and_defaults_are_the_published_ones(tmp_path):
    config = {**CONFIGS["llada2"], "mask_token_id": None, "eos_token_id": None, "pad_token_id": 156892}
    state = published("llada2", theirs("llada2").bfloat16())
    for name in ("model.word_embeddings.weight", "lm_head.weight"):
        state[name] = torch.zeros(157184, 32, dtype=torch.bfloat16)
    config["vocab_size"] = 157184
    done = import_checkpoint(write(tmp_path / "folder", config, state), out=tmp_path / "run")
    spec, how = done.run.model, done.run.sampler
    assert (spec.mask_token_id, spec.eos_token_ids, spec.block_size) == (156895, (156892,), 32)
    assert (how.policy.threshold, how.policy.strict) == (0.95, True)
    assert {p.dtype for p in gen.load(tmp_path / "run").net.parameters()} == {torch.bfloat16}


WRONG = {
    "llada_moe": [
        {"moe_router_enable_expert_bias": True},
        {"moe_router_score_function": "sigmoid"},
        {"norm_topk_prob": True},
        {"routed_scaling_factor": 2.5},
        {"shared_expert_intermediate_size": 24},
        {"clip_qkv": 8.0},
        {"partial_rotary_factor": 0.5},
        {"moe_layer_freq": [1, 0, 1]},
        {"moe_layer_freq": None},
        {"num_experts": 9},
    ],
    "sdar": [{"decoder_sparse_step": 2}, {"mlp_only_layers": [1]}, {"norm_topk_prob": None}, {"head_dim": 8}],
    "llada2": [
        {"score_function": "softmax"},
        {"norm_topk_prob": False},
        {"use_bias": True},
        {"norm_head": True},
        {"rotary_dim": 16},
        {"num_shared_experts": 1},
        {"first_k_dense_replace": 2},
        {"use_qk_norm": False},
        {"n_group": 3},
        {"topk_group": None},
        {"quantization_config": {"quant_method": "fp8"}},
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    ],
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_config_that_says_otherwise_is_refused_in_one_line(tmp_path, kind):
    state = published(kind, theirs(kind))
    for i, config in enumerate(WRONG[kind]):
        path = write(tmp_path / str(i), {**CONFIGS[kind], **config}, state)
        with pytest.raises(UserError) as caught:
            import_checkpoint(path, out=tmp_path / "run")
        assert "\n" not in str(caught.value) and not (tmp_path / "run").exists(), config


def test_a_missing_or_odd_expert_is_refused(tmp_path):
    state = published("sdar", theirs("sdar"))
    name = "model.layers.1.mlp.experts.{}.up_proj.weight"
    cases = {
        "missing": {key: value for key, value in state.items() if key != name.format(3)},
        "odd": {**state, name.format(3): state[name.format(3)][:-1].contiguous()},
        "fewer": {key: value for key, value in state.items() if ".experts.7." not in key},
    }
    for what, given in cases.items():
        with pytest.raises(UserError) as caught:
            import_checkpoint(write(tmp_path / what, CONFIGS["sdar"], given), out=tmp_path / "run")
        assert "\n" not in str(caught.value) and "experts" in str(caught.value)

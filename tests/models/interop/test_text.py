"""Hugging Face folders of text models, in small: the same logits as transformers, and every way one can be wrong."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

import gen
from gen.cli import main
from gen.config.errors import UserError
from gen.config.spec import names
from gen.models.interop.checkpoints import TEXT, import_checkpoint
from gen.models.interop.lib import qwen as _qwen
from gen.models.interop.lib.text_config import rename_tensors
from gen.models.interop.text import dream, llada
from gen.models.text import Text

VOCAB, MASK, STOP, LENGTH = 60, 59, 58, 64
SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": LENGTH}
LLADA = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "d_model": 32,
    "mlp_hidden_size": 48,
    "n_layers": 3,
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": VOCAB,
    "embedding_size": VOCAB,
    "max_sequence_length": LENGTH,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "weight_tying": False,
    "eos_token_id": STOP,
    "mask_token_id": MASK,
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "multi_query_attention": None,
    "include_bias": False,
    "include_qkv_bias": False,
    "rope": True,
}
QWEN = {**SIZES, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False}
QWEN |= {"eos_token_id": STOP, "mask_token_id": MASK, "use_sliding_window": False, "sliding_window": 8}
DREAM = {**QWEN, "model_type": "Dream", "architectures": ["DreamModel"]}
FAST = {**QWEN, "model_type": "Fast_dLLM_Qwen", "architectures": ["Fast_dLLM_QwenForCausalLM"], "bd_size": 8}
SDAR = {**QWEN, "model_type": "sdar", "architectures": ["SDARForCausalLM"], "head_dim": 16, "block_size": 4}
AR = {**QWEN, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
CONFIGS = {"llada": LLADA, "dream": DREAM, "fast_dllm": FAST, "sdar": SDAR, "autoregressive": AR}
BLOCKS = {"llada": None, "dream": None, "fast_dllm": 8, "sdar": 4, "autoregressive": 1}
SHIFTS = {"llada": 0, "dream": 1, "fast_dllm": 1, "sdar": 0, "autoregressive": 1}


def theirs(kind, dtype=torch.float32, tied=False, exact=False):
    """A random Llama or Qwen2 of transformers. exact: norms and softmax in the network's own precision."""
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    torch.manual_seed(0)
    others = {"llada": (LlamaForCausalLM, LlamaConfig), "sdar": (Qwen3ForCausalLM, Qwen3Config)}
    owner, config = others.get(kind, (Qwen2ForCausalLM, Qwen2Config))
    rope = {"rope_theta": CONFIGS[kind]["rope_theta"], "rope_type": "default"}
    how = {"head_dim": 16} if kind == "sdar" else {}
    how |= {"tie_word_embeddings": tied, "attn_implementation": "sdpa" if exact else "eager"}
    net = owner(config(**SIZES, rms_norm_eps=CONFIGS[kind]["rms_norm_eps"], rope_parameters=rope, **how)).to(dtype)
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.3)
    for name, module in list(net.named_modules()) if exact else ():
        if name.endswith("norm"):
            norm = torch.nn.RMSNorm(len(module.weight), eps=module.variance_epsilon, dtype=dtype)
            norm.weight = module.weight
            net.set_submodule(name, norm)
    return net.eval()


def published(kind, net):
    """Its weights under the names of the format."""
    state = {name: value.clone() for name, value in net.state_dict().items()}
    return state if kind != "llada" else named(kind, rename_tensors(state, "model.layers", _qwen.WHOLE, _qwen.INNER))


def named(kind, ours):
    """Our names to those of the format."""
    table, stack = (llada, "model.transformer.blocks") if kind == "llada" else (_qwen, "model.layers")
    whole, inner = ({b: a for a, b in names.items()} for names in (table.WHOLE, table.INNER))
    out = {}
    for name, value in ours.items():
        if name in whole:
            out[whole[name]] = value
            continue
        _, i, rest = name.split(".", 2)
        stem, _, end = rest.rpartition(".")
        out[f"{stack}.{i}.{inner[stem]}.{end}"] = value
    return out


def folder(path, kind, state, config=None, shards=1, tokenizer=True):
    """A folder as it is published, with code in it that must not run."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**CONFIGS[kind], **(config or {})}))
    (path / "modeling.py").write_text("raise SystemExit('code of the folder was run')")
    keys = sorted(state)
    if shards == 1:
        save_file(state, path / "model.safetensors")
    else:
        where = {key: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, key in enumerate(keys)}
        for file in set(where.values()):
            save_file({key: state[key] for key in keys if where[key] == file}, path / file)
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    if tokenizer:
        from tokenizers import Tokenizer, models, pre_tokenizers

        words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(40)}, unk_token="w0"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        words.save(str(path / "tokenizer.json"))
    return path


def imported(tmp_path, kind, net, spec=None, **how):
    done = import_checkpoint(folder(tmp_path / kind, kind, published(kind, net), **how), spec, out=tmp_path / "run")
    return done, gen.load(tmp_path / "run")


def tokens(n=21):
    return torch.randint(0, VOCAB, (3, n), generator=torch.Generator().manual_seed(1))


def test_every_format_is_tested():
    assert set(names(TEXT)) == set(CONFIGS) | {
        "llada_moe",
        "llada2",
        "d3llm",
        "mdlm",
        "bd3lm",
    }  # see test_text_experts.py, below, and test_ddit_folders.py


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_logits_are_those_of_transformers(tmp_path, kind, dtype):
    """With its attention mask as the format has it: everything, or blocks; moved by one place where it is."""
    net, x = theirs(kind, exact=dtype == torch.float64), tokens()
    _, pipeline = imported(tmp_path, kind, net, shards=1 if dtype == torch.float64 else 3)
    places = torch.arange(x.shape[1])
    size = BLOCKS[kind] or 21
    seen = places // size <= places[:, None] // size
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    expected = net.to(dtype)(x, attention_mask=mask.expand(3, 1, -1, -1)).logits
    if SHIFTS[kind]:
        expected = torch.cat([expected[:, :1], expected[:, :-1]], 1)
    tol = 5e-5 if dtype == torch.float32 else 1e-10  # the rounding of single precision differs between processors
    torch.testing.assert_close(pipeline.net.to(dtype)(x), expected, rtol=tol, atol=tol)
    assert expected.std() > 0.5


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@torch.no_grad()
def test_a_next_token_model_predicts_what_it_does_in_transformers(tmp_path, kind):
    """Whose config has no mask: one is appended, and changes nothing else; it writes what the model itself writes."""
    import transformers

    config, owner = (getattr(transformers, f"{kind.capitalize()}{end}") for end in ("Config", "ForCausalLM"))
    torch.manual_seed(0)
    given = SIZES | {"head_dim": 8, "eos_token_id": STOP, "bos_token_id": None, "pad_token_id": None}
    net = owner(config(**given, tie_word_embeddings=kind == "qwen3")).double().eval()
    for weight in net.parameters():
        weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.3)
    net.save_pretrained(tmp_path / kind)
    done = import_checkpoint(tmp_path / kind, out=tmp_path / "run")
    assert done.origin == "autoregressive" and done.run.model.mask_token_id == VOCAB
    assert done.notes[0].startswith("a next-token model")
    with pytest.raises(UserError, match=rf"{kind} is of autoregressive: config.json"):
        import_checkpoint(tmp_path / kind, "llada", out=tmp_path / "other")
    ours, x = gen.load(tmp_path / "run", dtype="float64"), tokens()
    expected = net(x).logits
    got = ours.net(x)[..., :VOCAB]
    torch.testing.assert_close(got[:, 1:], expected[:, :-1], rtol=1e-5, atol=1e-5)
    written = net.generate(x[:1, :5], attention_mask=torch.ones(1, 5), max_new_tokens=8, do_sample=False)
    texts = ours.generate(x[:1, :5].tolist(), 8, suppress_tokens=(), policy="topk")
    assert texts.decoded[0].text(0).tolist() == written[0, 5:].tolist()


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_config_json_says_becomes_the_spec(tmp_path, kind):
    done, pipeline = imported(tmp_path, kind, theirs(kind))
    sizes = {"vocab_size": VOCAB, "length": LENGTH, "width": 32, "depth": 3, "heads": 4, "kv_heads": 2, "hidden": 48}
    spec = pipeline.net.spec
    assert {key: getattr(spec, key) for key in sizes} == sizes
    assert (spec.mask_token_id, spec.eos_token_ids, spec.block_size, spec.shift, spec.qkv_bias) == {
        "llada": (MASK, (STOP,), None, 0, False),
        "dream": (MASK, (STOP,), None, 1, True),
        "fast_dllm": (MASK, (STOP,), 8, 1, True),
        "sdar": (MASK, (STOP,), 4, 0, False),
        "autoregressive": (MASK, (STOP,), 1, 1, True),
    }[kind]
    assert done.origin == kind and not done.dropped and done.matched == len(pipeline.net.state_dict())
    assert pipeline.info["source"]["origin"] == kind and pipeline.info["shape"] == [LENGTH]


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_imported_model_writes(tmp_path, kind):
    _, pipeline = imported(tmp_path, kind, theirs(kind))
    made = pipeline.generate(["w1 w2 w3", "w7"], 12, block_length=4, stopping_rules=())
    assert made.tokens == 24
    assert pipeline.tokenizer.decode([1, MASK, STOP]) == "w1"
    plain = pipeline.generate([[1, 2, 3], [7]], 12, block_length=4, stopping_rules=(), kv_plan=None)
    assert plain.texts == made.texts


def test_the_tokeniser_lies_with_the_weights_and_is_guarded(tmp_path):
    _, pipeline = imported(tmp_path, "llada", theirs("llada"))
    assert pipeline.tokenizer.vocab_size == VOCAB and pipeline.tokenizer.mask_token_id == MASK
    copy = tmp_path / "run" / "tokenizer.json"
    assert copy.read_bytes() == (tmp_path / "llada" / "tokenizer.json").read_bytes()
    copy.write_bytes(copy.read_bytes().replace(b"w39", b"w93"))
    with pytest.raises(UserError, match="sha256"):
        gen.load(tmp_path / "run").tokenizer.encode("w1")


def test_the_chat_template_of_a_folder_is_kept(tmp_path):
    path = folder(tmp_path / "llada", "llada", published("llada", theirs("llada")))
    turns = "{% for m in messages %}{{ bos_token }} {{ m.content }} {% endfor %}"
    (path / "chat_template.jinja").write_text(turns + "{% if add_generation_prompt %}w9{% endif %}")
    (path / "tokenizer_config.json").write_text('{"bos_token": "w3"}')
    import_checkpoint(path, None, out=tmp_path / "run")
    shutil.rmtree(path)
    loaded = gen.load(tmp_path / "run")
    assert loaded.chat_prompts([{"role": "user", "content": "w1 w2"}]) == [[3, 1, 2, 9]]
    assert loaded.chat([{"role": "user", "content": "w1 w2"}], 4).texts == loaded.generate("w3 w1 w2 w9", 4).texts


def test_a_folder_without_a_tokeniser_is_decoded_by_ids(tmp_path, capsys):
    done, pipeline = imported(tmp_path, "dream", theirs("dream"), tokenizer=False)
    assert pipeline.tokenizer is None and "no tokenizer.json" in done.notes[0]
    made = pipeline.generate("3 1 4", 5, stopping_rules=(), suppress_tokens=(STOP,))
    assert made.texts == pipeline.generate([3, 1, 4], 5, stopping_rules=(), suppress_tokens=(STOP,)).texts
    assert made.texts[0] == " ".join(map(str, made.decoded[0].text(0).tolist()))
    assert main(["decode", str(tmp_path / "run"), "--prompt", "3 1 4", "--gen-length", "5", "--stream"]) == 0
    assert main(["decode", str(tmp_path / "run"), "--prompt", "once", "--gen-length", "5"]) == 2
    assert "'once': this model has no tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["llada", "fast_dllm"])
@torch.no_grad()
def test_a_tied_head_is_the_table_of_tokens(tmp_path, kind):
    net, x = theirs(kind, tied=True), tokens()
    config = {"weight_tying": True, "tie_word_embeddings": True}
    done, pipeline = imported(tmp_path, kind, net, config=config)
    assert list(done.dropped.values()) == ["the table of tokens once more"]
    state, head = published(kind, net), "lm_head.weight" if kind != "llada" else "model.transformer.ff_out.weight"
    alone = {key: value for key, value in state.items() if key != head}
    import_checkpoint(folder(tmp_path / "alone", kind, alone, config), out=tmp_path / "other")
    torch.testing.assert_close(gen.load(tmp_path / "other").net(x), pipeline.net(x))
    with pytest.raises(UserError, match="two tables"):
        two = folder(tmp_path / "two", kind, {**state, head: state[head] + 1}, config)
        import_checkpoint(two, out=tmp_path / "third")


def test_bfloat16_weights_stay_as_they_are(tmp_path):
    from gen.config import checkpoints

    net = theirs("fast_dllm").bfloat16()
    _, pipeline = imported(tmp_path, "fast_dllm", net)
    stored = checkpoints.read_tensors(tmp_path / "run", "net.safetensors", checkpoints.read(tmp_path / "run"))
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    assert pipeline.net.state_dict()["embed.weight"].equal(net.state_dict()["model.embed_tokens.weight"])


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_loaded_as_they_are(tmp_path, half):
    """They became float32 without a choice: 60 GiB for an LLaDA-8B."""
    _, kept = imported(tmp_path, "llada", theirs("llada").to(half), shards=3)
    full = gen.load(tmp_path / "run", dtype="float32")
    assert {p.dtype for p in full.net.parameters()} == {torch.float32}
    assert {p.dtype for p in kept.net.parameters()} == {half}
    assert kept.generate(["w1 w2 w3"], 12, block_length=4, stopping_rules=()).tokens == 12


def test_published_ids_where_config_json_is_silent(tmp_path):
    """The full vocabularies, with a network of no size."""
    small = {"n_layers": 1, "d_model": 2, "n_heads": 1, "n_kv_heads": 1, "mlp_hidden_size": 1}
    few = {"num_hidden_layers": 1, "hidden_size": 2, "num_attention_heads": 1, "num_key_value_heads": 1}
    few |= {"intermediate_size": 1, "vocab_size": 152064, "mask_token_id": None, "max_position_embeddings": 131072}
    big = {"vocab_size": 126464, "embedding_size": 126464, "mask_token_id": None, "eos_token_id": 126081}
    made = {
        "llada": ({**small, **big}, (126336, (126081, 126348), LENGTH)),
        "dream": ({**few, "eos_token_id": 151643}, (151666, (151643, 151645), 2048)),
        "autoregressive": ({**few, "eos_token_id": 151643}, (151665, (151643,), 131072)),
        "fast_dllm": ({**few, "eos_token_id": [151645], "bd_size": None}, (151665, (151645,), 131072)),
        "sdar": (
            {**few, "eos_token_id": 151643, "vocab_size": 151936, "head_dim": 2, "block_size": None},
            (151669, (151643, 151645), 131072),
        ),
    }
    for kind, (config, expected) in made.items():
        vocab = {**CONFIGS[kind], **config}["vocab_size"]
        tiny = {"width": 2, "depth": 1, "heads": 1, "hidden": 1, "qkv_bias": kind in ("dream", "fast_dllm")}
        with torch.device("meta"):
            wanted = Text(vocab_size=vocab, **tiny).build().state_dict()
        state = named(kind, {name: torch.zeros(value.shape) for name, value in wanted.items()})
        path = folder(tmp_path / kind, kind, state, config, tokenizer=False)
        spec = import_checkpoint(path, out=tmp_path / f"{kind}-run").run.model
        assert (spec.mask_token_id, spec.eos_token_ids, spec.length) == expected
    assert spec.block_size == 4


def test_a_spec_overrides_what_config_json_says(tmp_path):
    spec = {"name": "dream", "mask_token_id": 50, "eos_token_ids": [3, 4], "shift": 0, "length": 32}
    _, pipeline = imported(tmp_path, "dream", theirs("dream"), spec)
    made = pipeline.net.spec
    assert (made.mask_token_id, made.eos_token_ids, made.shift, made.length) == (50, (3, 4), 0, 32)
    assert dream.DreamFolder().shift == 1


WRONG = {
    "llada": [
        {"block_type": "sequential"},
        {"layer_norm_type": "default"},
        {"include_bias": True},
        {"activation_type": "swiglu"},
        {"attention_layer_norm": True},
        {"multi_query_attention": True},
        {"rope": False},
        {"scale_logits": True},
        {"d_model": None},
        {"n_layers": "three"},
        {"n_layers": 2},
        {"n_layers": 4},
        {"mlp_hidden_size": 40},
        {"eos_token_id": "end"},
        {"mask_token_id": VOCAB},
        {"mask_token_id": STOP},
        {"architectures": ["LlamaForCausalLM"]},
    ],
    "dream": [
        {"hidden_act": "gelu"},
        {"use_sliding_window": True},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}},
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        {"head_dim": 16},
        {"block_size": 32},
        {"rms_norm_eps": None},
        {"rope_theta": None},
        {"tie_word_embeddings": True},
    ],
    "sdar": [
        {"block_size": 0},
        {"head_dim": 8},
        {"num_experts": 4},
        {"attention_bias": True},
        {"attn_logit_softcapping": 30.0},
    ],
    "fast_dllm": [{"bd_size": "many"}, {"bd_size": 0}, {"num_key_value_heads": 4}, {"vocab_size": 61}],
}


@pytest.mark.parametrize(
    ("kind", "config"), [(kind, config) for kind, list_ in WRONG.items() for config in list_], ids=str
)
def test_a_config_that_is_not_of_its_kind_is_refused_in_one_line(tmp_path, kind, config):
    path = folder(tmp_path / kind, kind, published(kind, theirs(kind)), config)
    with pytest.raises(UserError) as caught:
        import_checkpoint(path, out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", ["missing", "unexpected", "shape", "not finite", "shard"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_nothing_is_written_unless_every_tensor_finds_its_place(tmp_path, kind, what):
    state = published(kind, theirs(kind))
    name = next(key for key in state if key.endswith("up_proj.weight"))
    if what == "missing":
        del state[name]
    elif what == "unexpected":
        state[name.replace(".1.", ".7.").replace("up_proj", "up_projection")] = torch.zeros(2)
    elif what == "shape":
        state[name] = state[name][:, :-1].contiguous()
    elif what == "not finite":
        state[name][0, 0] = torch.nan
    path = folder(tmp_path / kind, kind, state, shards=2)
    if what == "shard":
        (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError) as caught:
        import_checkpoint(path, out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == [kind]


def test_a_table_of_angles_is_left_out(tmp_path):
    state = published("dream", theirs("dream"))
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    done = import_checkpoint(folder(tmp_path / "dream", "dream", state), out=tmp_path / "run")
    assert list(done.dropped) == ["model.layers.0.self_attn.rotary_emb.inv_freq"]


def test_the_command_says_what_it_found(tmp_path, capsys):
    path = folder(tmp_path / "model", "fast_dllm", published("fast_dllm", theirs("fast_dllm")))
    assert main(["import", str(path), "--out", str(tmp_path / "run")]) in (0, None)
    said = capsys.readouterr().out
    assert "fast_dllm" in said and "kv_plan block" in said and "generate(" in said


def test_d3llm_is_named_and_decoded_as_published(tmp_path):
    for kind, threshold, add in (("llada", 0.5, 0.5), ("dream", 0.4, 0.1)):
        path = folder(tmp_path / kind, kind, published(kind, theirs(kind)))
        assert import_checkpoint(path, out=tmp_path / f"{kind}-plain").origin == kind
        done = import_checkpoint(path, "d3llm", out=tmp_path / f"{kind}-run")
        how = gen.load(tmp_path / f"{kind}-run").decoding
        assert (how.policy.threshold, how.block_schedule.add, how.kv_plan) == (threshold, add, None)
        assert done.origin == "d3llm" and done.run.model.shift == SHIFTS[kind]
    path = folder(tmp_path / "sdar", "sdar", published("sdar", theirs("sdar")))
    strange = folder(tmp_path / "gpt", "sdar", {"a": torch.ones(1)}, {"architectures": ["GPT2LMHeadModel"]})
    with pytest.raises(UserError, match=r"gpt is of GPT2LMHeadModel; known are .*, autoregressive"):
        import_checkpoint(strange, out=tmp_path / "other")
    with pytest.raises(UserError, match="neither of LLaDA nor of Dream"):
        import_checkpoint(path, "d3llm", out=tmp_path / "run")


# Keys of published folders that say nothing of the computation.
SILENT = {
    "dream": [  # Dream-Coder, DiffuCoder
        {"max_window_layers": 28, "sliding_window": None, "rope_scaling": None, "use_cache": True, "use_mrope": False},
        {
            "initializer_range": 0.02,
            "attention_dropout": 0.0,
            "torch_dtype": "bfloat16",
            "auto_map": {"AutoModel": "x.Y"},
        },
    ],
    "sdar": [  # SDAR, TraDo
        {"attention_bias": False, "attn_implementation": "flex_attention", "debug": False, "ep_size": 1},
        {"fuse_cross_entropy": True, "micro_forward": False, "use_deepep": False, "rope_scaling": None},
    ],
}


@pytest.mark.parametrize("kind", SILENT)
def test_keys_that_say_nothing_of_the_computation_are_passed_over(tmp_path, kind):
    state = published(kind, theirs(kind))
    for i, config in enumerate(SILENT[kind]):
        path = folder(tmp_path / str(i), kind, state, config)
        assert import_checkpoint(path, out=tmp_path / f"run-{i}").origin == kind

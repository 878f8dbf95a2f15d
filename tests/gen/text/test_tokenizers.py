"""Tokenisers: what survives the round trip, what is left out, and what is refused."""

import hashlib
import json
import sys

import pytest

from gen.config.errors import MissingDependency, UserError
from gen.config.spec import build, spec_of
from gen.text.tokenizers.bytes import Bytes
from gen.text.tokenizers.huggingface import HuggingFace
from gen.text.tokenizers.words import Words

TEXTS = ["", "a", "Once upon a time.\n", "naïve 北京 🙂", "  two  spaces "]
SPECIAL = ["<|end|>", "<|start|>", "<|mask|>"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A byte-level BPE tokenizer.json with three special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(["once upon a time there was a time upon a once"] * 5, trainer)
    made.add_special_tokens(SPECIAL)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


def huggingface(file, **changes):
    return HuggingFace(**{"file": str(file), "mask_token": "<|mask|>", "eos_tokens": ("<|end|>",), **changes})


def one_line(call):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_contract_holds_for_each(file):
    for made in (Bytes(), Words(("a", "b")), huggingface(file)):
        assert 0 <= made.mask_token_id < made.vocab_size and made.mask_token_id not in made.eos_token_ids
        assert made.eos_token_ids and all(0 <= i < made.vocab_size for i in made.eos_token_ids)
        ids = made.encode("a b")
        assert ids and not {made.mask_token_id, *made.eos_token_ids} & set(ids)
        with_marks = [made.mask_token_id, *ids[:1], made.eos_token_ids[0], *ids[1:], made.mask_token_id]
        assert made.decode(with_marks) == made.decode(ids) == "a b"
        assert build("text.tokenizers", json.loads(json.dumps(spec_of(made)))) == made
        assert isinstance(made.separator, str)


@pytest.mark.parametrize("text", TEXTS)
def test_round_trips(text, file):
    for made in (Bytes(), huggingface(file)):
        assert made.decode(made.encode(text)) == text


def test_bytes_are_utf8():
    assert Bytes().encode("é\n") == [0xC3, 0xA9, 10]
    assert Bytes().decode([0xC3, 257]) == "\ufffd"
    assert "258" in one_line(lambda: Bytes().decode([258]))


def test_words_are_split_at_white_space_alone():
    made = Words(("sort", ":", "a", "b", "10"))
    assert made.encode(" sort :\tb a\n 10 ") == [0, 1, 3, 2, 4]
    assert made.decode([0, 1, 5, 3, 6]) == "sort : b"
    assert (made.vocab_size, made.eos_token_ids, made.mask_token_id) == (7, (5,), 6)
    assert "'sort:'" in one_line(lambda: made.encode("sort: a"))
    one_line(lambda: made.decode([7]))


@pytest.mark.parametrize("words", [(), ("a", "a"), ("a b",), ("",), ("a\n",)], ids=repr)
def test_words_that_are_none(words):
    one_line(lambda: Words(words))


def test_tokens_by_text_or_by_id_are_the_same(file):
    a = huggingface(file)
    b = huggingface(file, mask_token=a.mask_token_id, eos_tokens=a.eos_token_ids)
    assert (b.mask_token_id, b.eos_token_ids, b.vocab_size) == (
        a.mask_token_id,
        a.eos_token_ids,
        a.vocab_size,
    ) and a.mask_token_id == a.vocab_size - 1
    beyond = huggingface(file, mask_token=a.vocab_size + 3)
    assert (beyond.mask_token_id, beyond.vocab_size) == (
        a.vocab_size + 3,
        a.vocab_size + 4,
    )  # a model may have a mask that the file lacks
    assert beyond.decode([*a.encode("a time"), beyond.mask_token_id]) == "a time"


def test_marks_are_letters_but_in_rendered_texts_tokens_that_are_left_out(file):
    text, made = "<|start|>once<|mask|>", huggingface(file, rendered=True)
    ids = made.encode(text)
    assert ids[-1] == made.mask_token_id  # which a decoder refuses in a prompt
    assert made.decode(ids) == "once"
    assert huggingface(file).decode(huggingface(file).encode(text)) == text


def test_the_size_of_a_padded_vocabulary(file):
    made = huggingface(file)
    assert huggingface(file, size=made.vocab_size + 10).vocab_size == made.vocab_size + 10
    one_line(lambda: huggingface(file, size=made.vocab_size - 1).vocab_size)


def test_a_file_that_changes_after_it_was_named_is_another_one(file, tmp_path):
    """What a run and its checkpoints say of a tokenizer without a given sha256 holds the file to what it was."""
    own = tmp_path / "tokenizer.json"
    own.write_bytes(file.read_bytes())
    spec = spec_of(huggingface(own))
    assert spec["sha256"] == hashlib.sha256(own.read_bytes()).hexdigest()
    own.write_bytes(own.read_bytes().replace(b"once", b"onec"))
    assert f"{own} has sha256" in one_line(lambda: build("text.tokenizers", spec).encode("once"))


def test_the_file_is_the_one_that_was_meant(file, tmp_path):
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    made = huggingface("tokenizer.json", sha256=digest)
    assert made.with_files_in(file.parent).encode("a") == huggingface(file).encode("a")
    assert "sha256" in one_line(lambda: huggingface(file, sha256="0" * 64).encode("a"))
    assert "no file" in one_line(lambda: huggingface(tmp_path / "gone.json").mask_token_id)
    (tmp_path / "broken.json").write_bytes(file.read_bytes()[:100])
    assert "damaged" in one_line(lambda: huggingface(tmp_path / "broken.json").vocab_size)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    assert "damaged" in one_line(lambda: huggingface(tmp_path / "binary.json").vocab_size)
    assert "Did you mean '<|mask|>'" in one_line(lambda: huggingface(file, mask_token="<|mask>").mask_token_id)


def test_without_the_package(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDependency, match=r"pip install 'gen-diffusion\[text\]'"):
        huggingface(file).encode("a")


# What a file says of training


def test_truncation_padding_and_dropout_of_a_file_do_not_count(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(dropout=0.5))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(["once upon a time there was a time"] * 5, trainer)
    made.add_special_tokens(SPECIAL)
    made.enable_truncation(8)
    made.enable_padding(length=20, pad_token="<|end|>", pad_id=280)
    made.model.dropout = 0.5
    made.save(str(tmp_path / "tokenizer.json"))
    text, tokenizer = "once upon a time " * 40, huggingface(tmp_path / "tokenizer.json")
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len({tuple(tokenizer.encode(text)) for _ in range(5)}) == 1
    assert tokenizer.encode("") == []


@pytest.mark.parametrize("build_one", ["bytes", "file"])
def test_half_a_surrogate_pair_is_refused_in_one_line(build_one, file):
    tokenizer = Bytes() if build_one == "bytes" else huggingface(file)
    assert r"character 1 is '\ud83d', half a surrogate pair" in one_line(lambda: tokenizer.encode("a\ud83d b"))

"""Texts that are decoded in part: tokens are no letters."""

import random

import pytest

from gen.text.decoding import Decoding
from gen.text.detokenize import partial_text, text_pieces
from gen.text.pipeline import TextPipeline
from gen.text.tokenizers.bytes import Bytes
from gen.text.tokenizers.huggingface import HuggingFace
from gen.text.tokenizers.words import Words
from tests.gen.predictors import table_of

TEXT = "é🙂日 playing now, don't go. naïve  two"
MARKS = ["<|end|>", "<|mask|>"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Byte-level BPE, Metaspace with bytes to fall back on, WordPiece, words and our own bytes, by name."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder, lines = tmp_path_factory.mktemp("tokenizers"), [TEXT, "go now", "two now"] * 3
    level = Tokenizer(models.BPE())
    level.pre_tokenizer, level.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    level.train_from_iterator(
        lines, trainers.BpeTrainer(initial_alphabet=alphabet, vocab_size=270, show_progress=False)
    )
    pieces = [
        "<unk>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        "▁now",
        "▁go",
        "▁two",
        "play",
        "ing",
        *"abdefnotvy'.,",
    ]
    meta = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>"))
    meta = Tokenizer(models.Unigram([(p, -float(len(p) < 2)) for p in pieces], 0, byte_fallback=True))
    meta.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    meta.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    words = [
        "[UNK]",
        "play",
        "##ing",
        "now",
        ",",
        "don",
        "'",
        "t",
        "go",
        ".",
        "two",
        "é",
        "日",
        "na",
        "##ï",
        "##ve",
        "🙂",
    ]
    piece = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    piece.pre_tokenizer, piece.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    made = {"bytes": Bytes(), "words": Words(("é", "now", "go", "two"))}
    for name, one in {"byte_level": level, "metaspace": meta, "word_piece": piece}.items():
        one.add_special_tokens(MARKS)
        one.save(str(folder / f"{name}.json"))
        made[name] = HuggingFace(str(folder / f"{name}.json"), "<|mask|>", ("<|end|>",))
    return made


NAMES = ["byte_level", "bytes", "metaspace", "word_piece", "words"]


@pytest.mark.parametrize("name", NAMES)
def test_a_partial_text_becomes_the_text(name, tokenizers):
    """Whatever the order: what is between masks is a part of the text where no character is torn."""
    one = tokenizers[name]
    ids = one.encode("é now go two now" if name == "words" else TEXT)
    whole = one.decode(ids)
    assert len(ids) > 4 and whole
    for seed in range(20):
        shown = [None] * len(ids)
        for i in random.Random(seed).sample(range(len(ids)), len(ids)):
            shown[i] = ids[i]
            line = partial_text(shown, one.decode, one.separator)
            assert line.count("·") >= shown.count(None) and ("\ufffd" not in line or None not in shown)
            parts = line.split("·")
            assert all(part.strip() in whole for part in parts if name != "word_piece")
        assert line == whole


def test_tokens_after_a_mask_keep_the_space_before_them(tokenizers):
    for name, text, hide, expected in (
        ("metaspace", "go now two", [0], "· now two"),
        ("metaspace", "go now two", [1], "go· two"),
        ("word_piece", "playing now", [0], "·ing now"),
        ("word_piece", "playing now", [1], "play· now"),
        ("words", "go now two", [1], "go · two"),
        ("bytes", "é", [1], "··"),
    ):
        one = tokenizers[name]
        ids = [None if i in hide else v for i, v in enumerate(one.encode(text))]
        assert partial_text(ids, one.decode, one.separator, one.encode("go")) == expected, name


@pytest.mark.parametrize("name", NAMES)
def test_the_pieces_of_a_text_are_the_text(name, tokenizers):
    one = tokenizers[name]
    for text in ("é now go two now",) if name == "words" else (TEXT, "日", "", "🙂🙂"):
        ids = one.encode(text)
        pieces = text_pieces(ids, one.decode)
        assert "".join(piece for piece, _ in pieces) == one.decode(ids)
        assert sum(n for _, n in pieces) == len(ids) and not any("\ufffd" in piece for piece, _ in pieces)
    assert text_pieces(Bytes().encode("é!"), Bytes().decode) == [("é", 2), ("!", 1)]


@pytest.mark.parametrize("stops", [("eos",), ("eotp", "eos"), ("prophet", "eos"), ()])
@pytest.mark.parametrize("name", NAMES)
def test_the_last_streamed_text_is_what_generate_writes(name, stops, tokenizers):
    one = tokenizers[name]
    ids = [*one.encode("é now go" if name == "words" else TEXT), one.eos_token_ids[0], *one.encode("now")]
    sure = [0.5 + 0.4 * random.Random(i).random() for i in range(len(ids))]
    net = table_of(ids, sure, words=one.vocab_size - 1, eos_token_ids=one.eos_token_ids)
    assert net.mask_token_id == one.mask_token_id
    pipeline = TextPipeline(net, one, Decoding("topk", "whole", stopping_rules=stops))
    steps = list(pipeline.stream("", len(ids)))
    assert (
        steps[-1].text == pipeline.generate("", len(ids)).texts[0] == one.decode(ids[: ids.index(one.eos_token_ids[0])])
    )
    assert not any("\ufffd" in step.text for step in steps)

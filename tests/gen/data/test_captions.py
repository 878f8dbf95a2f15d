"""Captions as conditions of data: ids or embeddings, in memory; and the captioned digits."""

import pickle
from dataclasses import dataclass

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.data.captioned_digits import PHRASES, CaptionedDigits, caption, caption_words
from gen.data.captions import Captions
from gen.data.digits import Digits
from gen.text.tokenizers.bytes import Bytes
from gen.text.tokenizers.sentences import Sentences


@dataclass(frozen=True)
class Encoder:
    """A text encoder that counts the captions it was given."""

    path: str = ""

    def identity(self):
        return {"class": "Encoder"}

    def load(self, device="cpu"):
        self_calls.clear()

        def encode(captions):
            self_calls.extend(captions)
            text = torch.tensor([[float(len(one))] * 3 for one in captions])[:, None].expand(-1, 2, -1)
            return {"text": text, "text_mask": torch.tensor([[True, bool(one)] for one in captions])}

        return encode


self_calls: list[str] = []


@pytest.fixture(scope="module")
def digits():
    return {split: CaptionedDigits().open(split) for split in ("train", "test")}


def test_digits_come_in_all_weights_and_turns_and_some_combinations_are_held_out(digits):
    source = CaptionedDigits()
    unseen = source.held_out_combinations
    assert len({*unseen}) == 12 and len({*CaptionedDigits(held_out=45).held_out_combinations}) == 45
    seen = {tuple(one) for one in digits["train"].attributes.tolist()}
    assert len(seen) == 90 - 12 and not seen & {*unseen}
    assert {tuple(one) for one in digits["test"].attributes.tolist()} >= seen | {*unseen}
    assert len(digits["test"]) == 9 * 360 and all(one["x"].shape == source.shape for one in (digits["train"][0],))
    x = digits["test"].x.float().flatten(1).mean(1)
    weight = digits["test"].attributes[:, 1]
    thin, plain, bold = (x[weight == i].mean() for i in range(3))
    assert thin < 0.8 * plain and bold > 1.2 * plain


def test_captions_say_the_attributes_in_several_phrasings(digits):
    data = digits["test"]
    assert data.caption(0) in {caption(*data.attributes[0].tolist(), phrase) for phrase in range(len(PHRASES))}
    texts = [data.caption(i) for i in range(0, len(data), 9)]
    assert len({*texts}) > 100 and caption(7, 2, 0) == "a bold seven, turned left"
    words = Sentences(caption_words())
    assert all(words.encode(text) for text in texts)
    shuffled = CaptionedDigits(shuffled=True).open("test")
    assert torch.equal(shuffled.x, data.x) and shuffled.fingerprint != data.fingerprint
    same = sum(shuffled.caption(i) == data.caption(i) for i in range(len(data)))
    assert same < 0.02 * len(data)
    assert sorted(map(shuffled.caption, range(len(data)))) == sorted(map(data.caption, range(len(data))))


def test_items_have_ids_a_mask_and_no_label(digits):
    source = Captions(CaptionedDigits(), Sentences(caption_words()), length=12)
    assert build("data", spec_of(source)) == source and source.classes == 0 and source.shape == (1, 16, 16)
    data = source.open("test")
    item, text = data[5], data.caption(5)
    assert item.keys() == {"x", "text_ids", "text_mask"} and item["text_ids"].shape == (12,)
    assert item["text_mask"].sum() == len(source.text.encode(text))
    known = source.text.decode(item["text_ids"][item["text_mask"]].tolist())
    assert known.replace(" ,", ",").replace(" :", ":") == text
    batch = data.draw_batch([5, 9], [1, 2])
    assert all(torch.equal(batch[key][0], item[key]) for key in item)
    assert pickle.loads(pickle.dumps(data)).caption(5) == text
    labelled = Captions(CaptionedDigits(), Bytes(), length=64, labels=True)
    assert labelled.classes == 10 and "y" in labelled.open("test")[0] and labelled.label_names[7] == "seven"
    assert len({data.fingerprint, labelled.open("test").fingerprint}) == 2


def test_an_encoder_embeds_each_caption_once(digits):
    source = Captions(CaptionedDigits(), Encoder())
    data = source.open("test")
    again = [data[0], data[0], data.draw_batch([0, 0], [1, 2])]
    assert again[0]["text"].shape == (2, 3) and self_calls == [data.caption(0)]
    assert source.text_fields == {"text_width": 3, "text_length": 2, "null_text": "stored"}
    assert source.null_text["text_mask"].tolist() == [True, False]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [("a bold cat", "unknown 'cat'"), (" ".join(["a"] * 13), "has 13 tokens; at most length = 12")],
)
def test_a_caption_that_cannot_be_read_is_one_line(prompt, said):
    source = Captions(CaptionedDigits(), Sentences(caption_words()), length=12)
    with pytest.raises(UserError, match=said) as caught:
        source.encode_prompts([prompt])
    assert "\n" not in str(caught.value) and prompt[:6] in str(caught.value)


def test_data_without_captions_is_refused():
    with pytest.raises(UserError, match="digits has no captions"):
        Captions(Digits(), Bytes()).open("train")
    with pytest.raises(UserError, match="held_out"):
        CaptionedDigits(held_out=46)

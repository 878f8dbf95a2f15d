"""A subject's pictures beside those of a prior: which, how often, under which caption."""

from collections import Counter

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.data.captioned_digits import CaptionedDigits, caption_words
from gen.data.captions import Captions
from gen.data.digits import Digits
from gen.data.subject import Subject, SubjectItems
from gen.text.tokenizers.sentences import Sentences


class Few:
    """n pictures that say which they are, and draw otherwise; with captions if they are a prior."""

    def __init__(self, n, captioned=False):
        self.n, self.fingerprint = n, f"few {n}"
        if captioned:
            self.caption = "prior {}".format

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return {"x": torch.full((1, 2, 2), float(i)), "y": torch.tensor(7)}

    def draw(self, i, key):
        return {"x": torch.full((1, 2, 2), i + key / 100)}


@pytest.mark.parametrize(("few", "many", "weight"), [(3, 10, 1.0), (10, 3, 1.0), (4, 9, 2.0), (5, 2, 0.25)])
def test_the_prior_has_its_share_and_every_picture_comes(few, many, weight):
    items = SubjectItems(Few(few), "a sks", Few(many, captioned=True), weight)
    captions = Counter(items.caption(i) for i in range(len(items)))
    assert captions.keys() == {"a sks", *(f"prior {i}" for i in range(many))}
    share = 1 - captions["a sks"] / len(items)
    assert abs(share - weight / (1 + weight)) <= 1 / len(items)
    of_subject = [i for i in range(len(items)) if items.caption(i) == "a sks"]
    assert {float(items[i]["x"].mean()) for i in of_subject} == set(range(few))
    for i in range(len(items)):
        if i not in of_subject:
            assert items.caption(i) == f"prior {items[i]['x'].mean():g}"
    drawn = items.draw_batch([0, 1], [25, 50])["x"]
    torch.testing.assert_close(drawn.mean((1, 2, 3)), torch.tensor([float(items[i]["x"].mean()) for i in (0, 1)])
                               + torch.tensor([0.25, 0.5]))  # fmt: skip
    assert items[0].keys() == {"x"}


def test_without_a_prior_the_pictures_alone():
    items = SubjectItems(Few(3), "a sks", None, 1.0)
    assert [items.caption(i) for i in range(len(items))] == ["a sks"] * 3
    assert items.fingerprint != SubjectItems(Few(3), "a dog", None, 1.0).fingerprint


def test_pictures_may_have_captions_of_their_own():
    items = SubjectItems(Few(3, captioned=True), None, Few(2, captioned=True), 1.0)
    assert {items.caption(i) for i in range(len(items))} == {"prior 0", "prior 1", "prior 2"}
    other = Few(3, captioned=True)
    other.caption = "other {}".format
    assert items.fingerprint != SubjectItems(other, None, Few(2, captioned=True), 1.0).fingerprint
    with pytest.raises(UserError, match="Subject: data, digits, has no captions; give one as `caption`"):
        Subject(None, Digits()).open("train")


def test_it_is_data_of_a_text_to_image_model_too():
    spec = {"name": "subject", "data": "captioned_digits", "caption": "a bold seven", "prior": "captioned_digits"}
    source = build("data", spec)
    assert build("data", spec_of(source)) == source
    captions = Captions(source, Sentences(caption_words()), length=12)
    data = captions.open("train")
    batch = data.draw_batch([0, 1, 2], [0, 0, 0])
    assert batch["text_ids"].shape == (3, 12) and torch.equal(batch["text_ids"][0], data[2]["text_ids"])
    assert not torch.equal(batch["text_ids"][0], batch["text_ids"][1])


def test_what_does_not_fit_is_refused_in_one_line():
    with pytest.raises(UserError, match="needs a caption of its pictures"):
        Subject(" ", CaptionedDigits())
    with pytest.raises(UserError, match=r"prior has pictures \[1, 8, 8\], and data \[1, 16, 16\]"):
        Subject("a sks", CaptionedDigits(), Digits()).open("train")
    with pytest.raises(UserError, match="prior, digits, has no captions, whose meaning it would keep"):
        Subject("a sks", Digits(), Digits()).open("train")

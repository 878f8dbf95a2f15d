"""Data: one file per source, a frozen dataclass that opens a map-style data set.

    folder       pictures in class folders                   lists    lists of letters with ten tasks (text)
    zip          a zip of pictures, EDM2's or any            text     text files as windows of tokens (text)
    webdataset   tar shards of pictures                      answers  a teacher's decoded answers (text)
    table        a .csv, .tsv or .jsonl of picture files     pairs    noise and what a teacher generated from it
    huggingface  a data set that `datasets` loads
    npz          ADM's .npz of images                        mixture  points of a mixture of Gaussians
    latents      what gen encode wrote, or others' latents   digits   8 x 8 digits in scikit-learn's wheel
    given        a torch Dataset of your own                 photographs  colour crops of nine photographs
    captions     another source's captions as a condition    captioned_digits  16 x 16 digits with sentences
    degraded     another source's pictures, degraded         low_digits, drawn_text  degraded digits and text
    point_mass   actions of an expert under its state        moving_digits  films of a digit that moves around

A path is as good as a spec: "./photos" is the kind of data that lies there (spec_at). This page is the contract; a
class of your own is named "my_package.module:Class".
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from gen.data.lib.kinds import spec_at

__all__ = ["DataSet", "DataSource", "spec_at"]


class DataSet(Protocol):
    """A map-style data set: len(data) items, data[i] the i-th as a dict of tensors.

    Images: {"x": float32 [C, H, W] in [-1, 1]}, with labels also "y": int64 0-d; signals are [C, L], films
    [C, T, H, W]. Every further key is handed to the network as a condition of its name, batched, such as "vector",
    float32 [vector_width], but for "origin": the int64 seed of the noise a pair's x came from.
    Text: {"x": int64 [L], "prompt": int64 0-d}: the first `prompt` tokens are given, never masked and never trained; a
    text that is shorter than L ends with the tokeniser's first end-of-text token, which fills the rest too. Objectives
    train some of those (gen.training.objectives.lib.masked.window_ends). With "length", int64 0-d, the data decide:
    from that position on there is padding, which no other token attends to. It must not tell how long a text is. With
    "given", bool [L], further tokens are given. With "document", int64 [L], and "given", the window holds several
    texts, each by itself, which "document" numbers from 0 (gen.text.documents).

    Further methods may be there: `draw(i, key)`, item i under the random choices (crop, mirroring, draw of a latent)
    of a key, by which training reads then, with a key of (seed, epoch, i), or of (seed, epoch, `drawn_with(i)`) if
    that method is there: items may share a key; `batch(rows)`, the items of a list of
    indices stacked, by which training reads data without `draw`, faster than one by one; `draw_batch(rows, keys)`,
    both; `where(i)`, the file and row of item i, for messages; and `caption(i)`, its text. `buckets` may be there, an
    int for each item: x has one shape in each, and a batch is of one. `groups` may be there, the number of items of
    each group of neighbours that is read at once; with it `groups_at_once`, of how many of them a batch mixes items,
    and `keep(groups)`, by which is said how many have to stay in memory.

    Attributes:
        fingerprint: a hash (hex) of the content and of every option that changes it; a run resumes on equal ones only.
    """

    @property
    def fingerprint(self) -> str:
        """A hash (hex) of the content and of every option that changes it."""
        ...

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def __getitem__(self, i: int, /) -> dict[str, Tensor]:
        """Return one item as a dict of tensors.

        Args:
            i: index in [0, len(data)).
        """
        ...


class DataSource(Protocol):
    """A plug-in of this folder: a frozen dataclass whose fields say where the data are and how they are read.

    A source of text has `tokenizer` and `vocab_size` too, see gen.text.contracts.tokenizer. A source of latents or
    points has the class attribute `pictures = False`: they are never clamped to [-1, 1] or drawn. One of latents has
    `latent`, what a checkpoint says of them (gen.data.lib.learned), and tensors that go with it. One
    whose labels have names has `label_names`, a tuple; they are stored with the model, and are as good as numbers. One
    of vectors as conditions has `vector_width`, their length. One of captions has `text_fields`, the fields of a model
    that reads them, `null_text`, the embedding of no caption, or None, and perhaps `encode_prompts(captions)`, their
    condition.

    Attributes:
        shape: the shape of one x: (C, H, W), (C, L) of signals, (C, T, H, W) of films, or (L,) for text.
        classes: number of labels; 0 if items have no "y".
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one x: (C, H, W), (C, L) of signals, (C, T, H, W) of films, or (L,) for text."""
        ...

    @property
    def classes(self) -> int:
        """The number of labels; 0 if items have no "y"."""
        ...

    def open(self, split: str) -> DataSet:
        """Open a split.

        Args:
            split: "train" or "test"; the two share no item.

        Raises:
            UserError: in one line, for data that are missing, broken or laid out differently.
        """
        ...

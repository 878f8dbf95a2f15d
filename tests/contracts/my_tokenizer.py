"""A tokenizer of one's own: the ten digits."""

from dataclasses import dataclass

from gen.config.errors import UserError


@dataclass(frozen=True)
class MyTokenizer:
    """Ids 0 .. 9 are the digits, 10 is the end of text and 11 the mask."""

    vocab_size = 12
    mask_token_id = 11
    eos_token_ids = (10,)
    separator = " -> "

    def encode(self, text):
        if not text.isdigit() and text:
            raise UserError(f"MyTokenizer: {text!r} is no number")
        return [int(digit) for digit in text]

    def decode(self, ids):
        return "".join(str(int(i)) for i in ids if i < 10)

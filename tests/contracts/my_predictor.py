"""A predictor of one's own, which needs no network: every position repeats the id that is two positions before it."""

import torch


class MyPredictor:
    """Certain of the token two positions back, where that is known; of others it knows nothing."""

    vocab_size, mask_token_id, eos_token_ids, block_size, shift = 12, 11, (10,), None, 0

    def init_cache(self, rows, length):
        raise NotImplementedError  # nobody asks for one without a KV plan

    def __call__(self, tokens, lengths=None, positions=None):
        if positions is None:
            positions = torch.arange(tokens.shape[1]).expand(len(tokens), -1)
        before = tokens.gather(1, (positions - 2).clamp(min=0))
        known = (before != self.mask_token_id) & (positions >= 2)
        hot = torch.nn.functional.one_hot(before, self.vocab_size)
        return torch.where(known[..., None], 9.0 * hot, 0.0)

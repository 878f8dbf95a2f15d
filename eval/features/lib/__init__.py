"""Shared pieces of extractors: files of weights, resize rules, folded convolutions, batches of one size, LPIPS."""

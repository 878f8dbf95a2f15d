"""Rewards: what reinforcement learning raises, one file each.

A reward is a frozen dataclass with

    __call__(x, cond) -> float64 [B]     the reward of samples x [B, ...], made under cond
    features(x) -> [B, D]                the space in which the diversity of samples is measured

No gradient passes through either.
"""

"""Optimisers: one file per optimiser, a frozen dataclass with build(parameters) -> torch.optim.Optimizer."""

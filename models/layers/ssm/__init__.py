"""State-space layers: HiPPO matrices, S4, S4D, Mamba, and ConvS5 for frames."""

"""State-space layers: HiPPO matrices, S4, S4D, the selective scan and Mamba, ConvS5 for frames."""

"""ParallelBench: tasks that show what parallel decoding costs (Kang et al. 2025, arXiv 2510.04767)."""

"""Shared pieces of kernels: launching Triton, registering custom operators."""

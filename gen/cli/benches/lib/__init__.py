"""Shared pieces of benchmarks: the networks, the cases of kernel ops, and the libraries they are compared with."""

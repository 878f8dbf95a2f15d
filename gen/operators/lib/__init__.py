"""Pieces that measurement operators share: the contract, decompositions, and iterative solves."""

"""Pieces that methods of restoration share: the contract, and predictions moved towards a measurement."""

"""Pieces that several mixers share."""

"""Pieces that metrics share: moments, blocks of rows, neighbours."""

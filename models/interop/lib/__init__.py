"""Shared pieces of importers: fields inferred from shapes, rotary tables, names of blocks."""

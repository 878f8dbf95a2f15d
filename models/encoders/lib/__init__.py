"""Shared pieces of encoders: vision transformers of transformers."""

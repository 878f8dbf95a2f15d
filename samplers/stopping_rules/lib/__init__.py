"""Shared pieces of stopping rules."""

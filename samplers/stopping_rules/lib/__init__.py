"""Shared pieces of stop rules."""

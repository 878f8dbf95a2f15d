"""Shared pieces of cache predictors: divided differences."""

"""Shared pieces of data sets: tensors as a map-style data set with a fingerprint."""

"""Shared parts of autoencoders."""

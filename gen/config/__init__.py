"""Specs and the registry of plug-ins, errors, checkpoint files, pictures."""

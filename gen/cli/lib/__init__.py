"""Shared pieces of the command line: the options that several verbs have."""

"""Shared pieces of distillers: students and critics, stores of pairs and answers, losses, and gen.distill itself."""

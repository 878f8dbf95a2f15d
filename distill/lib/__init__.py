"""Shared pieces of distillers: teachers, losses, networks beside the student, stores of what a teacher generates."""

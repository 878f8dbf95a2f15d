"""Recipes: functions that return a Run, with the measured result, machine class and date in the docstring."""

"""What people read when something is wrong."""

from __future__ import annotations

from gen.config.errors import MissingDependency, UserError, nearest


def test_nearest_names_the_closest_and_all():
    assert nearest("huen", ["heun", "euler"]) == "Did you mean 'heun'? Allowed: euler, heun."


def test_nearest_does_not_guess_wildly():
    assert nearest("xyz", ["heun", "euler"]) == "Allowed: euler, heun."


def test_nearest_of_nothing():
    assert nearest("x", []) == "Allowed: nothing."


def test_a_missing_dependency_is_a_user_error():
    assert issubclass(MissingDependency, UserError)
    assert issubclass(UserError, ValueError)

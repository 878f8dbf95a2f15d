"""One test of many values: a case a value would cost more than what it checks."""

import contextlib
import functools
import inspect

import torch


@contextlib.contextmanager
def naming(what):
    """What fails within says of what."""
    try:
        yield
    except BaseException as error:
        error.add_note(what)
        raise


def over(**given):
    """Make one test of a check for every value of one of its arguments; what fails names its value.

    Decorators above it apply to the test, those below to the check. Each value begins with the same random numbers.
    """
    ((name, cases),) = given.items()
    values = [case.values[0] if hasattr(case, "marks") else case for case in cases]  # of pytest.param too

    def decorate(check):
        @functools.wraps(check)
        def test(**others):
            for value in values:
                torch.manual_seed(0)
                with naming(f"{name} = {value!r}"):
                    check(**others, **{name: value})

        of_check = inspect.signature(check)
        kept = [argument for key, argument in of_check.parameters.items() if key != name]
        del test.__wrapped__
        test.__signature__ = of_check.replace(parameters=kept)
        return test

    return decorate

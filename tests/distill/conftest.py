"""Teachers that are trained once for all tests of distillation."""

import pytest

from gen.config.trust import allowing
from gen.diffusion.parameterisation import V
from gen.diffusion.path import Trig
from gen.training.trainer import train
from tests.distill.texts import tiny_text
from tests.gen.tiny import tiny

TEACHERS = {
    "image": lambda: tiny(steps=4, validate_every=0),
    "trig": lambda: tiny(steps=2, validate_every=0, path=Trig(), parameterisation=V()),
    "consistency": lambda: tiny(steps=2, validate_every=0, objective={"name": "ect", "double_every": 1}),
    "text": tiny_text,
}


@pytest.fixture(scope="module", autouse=True)
def _own_names_are_followed():
    """Text teachers are trained on data of tests.distill.texts, which their folders name."""
    with allowing(["tests"]):
        yield


@pytest.fixture(scope="session")
def teachers(tmp_path_factory):
    """The folder of a teacher's run by its kind; each is trained when it is first wanted."""
    root, made = tmp_path_factory.mktemp("teachers"), {}

    def folder(kind):
        if kind not in made:
            made[kind] = train(TEACHERS[kind](), root / kind, quiet=True).folder
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def teacher(teachers):
    """The folder of an image model's run."""
    return teachers("image")


@pytest.fixture(scope="session")
def text_teacher(teachers):
    """The folder of a text model's run."""
    return teachers("text")

"""YAML files of other people's trainings, read as data: bounded in size and depth, without references or tags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gen.config.errors import UserError
from gen.config.reading import read_text

__all__ = ["read_yaml"]

MAX_CHARACTERS = 2**20
MAX_DEPTH = 32


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file: numbers, texts, dates, lists and mappings.

    Args:
        path: of the file.

    Raises:
        UserError: in one line, for what is no YAML, too large, too deep, refers to other parts of itself, has a key
            twice, or names objects.
    """
    import yaml

    text = read_text(path)
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{path} has {len(text):,} characters; settings have at most {MAX_CHARACTERS:,}")
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:
                raise UserError(f"{path} refers to other parts of itself, or is nested deeper than {MAX_DEPTH} levels")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _check(node, path)
        return None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is no YAML of settings: {' '.join(str(error).split())[:200]}") from None


def _check(node: Any, path: Path) -> None:
    """Refuse keys that are there twice, of which YAML would take the last."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise UserError(f"{path} has {twice[0]!r} twice in one section")
        for _, value in node.value:
            _check(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check(value, path)

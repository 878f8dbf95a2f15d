"""What sources say of plug-ins is what the imported plug-ins say."""

import pytest

from gen.cli.list import FOLDERS
from gen.config.errors import UserError
from gen.config.sources import Source, definitions
from gen.config.spec import describe, find, first_paragraph, names, preset_names


@pytest.mark.parametrize("folder", FOLDERS)
def test_sources_say_what_the_imported_plugins_say(folder):
    read = definitions(folder)
    assert list(read) == names(folder)
    for name, source in read.items():
        plugin = find(name, folder)
        assert source is not None and source.doc is not None, name
        assert first_paragraph(source.doc) == describe(plugin)
        assert source.preset_names == preset_names(plugin)


def test_tables_are_read_and_nothing_is_executed(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "import no_such_package\n"
        "SIZES = {'S': (1, 2), 'L': (2, 4)}\n"
        "class Base:\n    presets = _table()\n"
        "def _table() -> no_such_package.Table:\n"
        "    rows = {s: a for s, (a, _) in SIZES.items()}\n"
        "    sizes = {f'own-{s}/{p}': {'a': a, 'b': no_such_package.b}\n"
        "             for s, a in rows.items() for p in (1, 2) if (s, p) != ('L', 1)}\n"
        "    return {**sizes, 'digits': {**sizes['own-S/1'], 'c': 3}}\n"
        "class Own(Base, no_such_package.Thing):\n    'Doc.'\n"
        "class Around(Own):\n    inner: Own\n"
        "class Hidden:\n    presets = {name: 1 for name in no_such_package.names}\n"
        "raise RuntimeError\n",
        encoding="utf-8",
    )
    source = Source("own", str(file))
    own = source.find("Own")
    assert (own.doc, own.preset_names) == ("Doc.", ["own-S/1", "own-S/2", "own-L/2", "digits"])
    assert own.presets["digits"] == {"a": 1, "b": ..., "c": 3}
    assert (source.find("Around").doc, source.find("Around").preset_names) == (None, [])
    assert source.find("Hidden").preset_names is None


@pytest.mark.parametrize("folder", ["samplers.none", "none", "", None])
def test_a_folder_that_there_is_not_is_refused(folder):
    with pytest.raises(UserError, match="no folder of plug-ins"):
        definitions(folder)

"""Everything that a leaderboard shows, read from anywhere: records, published rows, votes, and lists of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gen.config.errors import UserError, shown
from gen.config.reading import read_json, read_toml
from gen.eval.arena.votes import VoteList
from gen.eval.published import Published
from gen.eval.record import Record, from_json, read_as, record_folder

__all__ = ["Entry", "collect", "collect_all"]

Entry = Record | Published | VoteList


def collect(sources: object) -> list[Record]:
    """Read records from anywhere.

    Args:
        sources: as `collect_all` takes them.

    Returns:
        The records; the same one twice counts once.

    Raises:
        UserError: naming the source, for what is none of these, and if there are no records.
    """
    records = [entry for entry in collect_all(sources) if isinstance(entry, Record)]
    if not records:
        raise UserError("no evaluation records: give run folders that were evaluated, or the records themselves")
    return records


def collect_all(sources: object) -> list[Entry]:
    """Read all that a leaderboard shows from anywhere: records, published rows, and an arena's votes.

    Args:
        sources: a record, a .json file, a folder of a run (its eval/*.json), a folder or a file of samples
            (SAMPLES.eval/*.json), a folder that holds some of these, a .jsonl file of votes, a .toml list, an object of
            these kinds, or several of all these, of which each that holds nothing, or is damaged, is passed over with a
            warning that names it. A list is a TOML file of tables [[entry]] with `path`, relative to the list, and
            optionally `label`, a new name; and of tables [[published]] with the fields of `Published`. A path may be
            another list, but none that leads back.

    Returns:
        All of them; the same one twice counts once.

    Raises:
        UserError: naming the source, for what is none of these.
    """
    entries: list[Entry] = []
    for entry in _read_all(sources):
        if entry not in entries:
            entries.append(entry)
    if not entries:
        raise UserError("no evaluation records: give run folders that were evaluated, or the records themselves")
    return entries


RECORDS = f"{'?' * 16}-{'?' * 8}.json"  # as write_record names them


def _read_all(source: object, within: tuple[Path, ...] = ()) -> Iterable[Entry]:
    """Yield the entries of a source; `within` are the lists that led to it."""
    if isinstance(source, (Record, Published, VoteList)):
        yield source
    elif isinstance(source, Mapping):
        yield from_json(source, Record, f"the record {str(source.get('label', '?'))!r}")
    elif isinstance(source, Iterable) and not isinstance(source, str) and getattr(source, "ndim", None) != 0:
        several = list(source)
        for one in several:
            try:
                yield from list(_read_all(one, within))
            except (UserError, OSError) as error:
                if len(several) == 1:
                    raise
                warnings.warn(f"passed over: {error}", stacklevel=2)
    elif not isinstance(source, (str, Path)):
        raise UserError(f"{shown(source)} is no record, and no path of one")
    elif (path := Path(source)).is_dir() or record_folder(path).is_dir():
        files = sorted((path / "eval").glob("*.json")) or sorted(record_folder(path).glob("*.json"))
        files = files or sorted(path.glob(RECORDS))  # a folder given as --out
        files = files or [file for kind in ("*/eval", "*.eval") for file in sorted(path.glob(f"{kind}/{RECORDS}"))]
        if not files:
            raise UserError(f"{path} holds no evaluations; first: gen evaluate RUN, of one of its runs")
        yield from _read_all(files)
    elif path.suffix == ".toml":
        yield from _read_list(path, within)
    elif path.suffix == ".jsonl":
        yield VoteList.read(path)
    else:
        yield from_json(read_json(path), Record, str(path))


def _read_list(path: Path, within: tuple[Path, ...]) -> Iterable[Entry]:
    if path.resolve() in within:
        raise UserError(f"{path}: this list leads back to itself; a path names records, run folders or other lists")
    content = read_toml(path)
    tables = [content.get(key, []) for key in ("entry", "published")]
    if set(content) - {"entry", "published"} or not all(isinstance(t, list) for t in tables) or not any(tables):
        raise UserError(
            f"{path}: a list has tables [[entry]] and [[published]] and nothing else, it has {', '.join(content)}"
        )
    for given in tables[0]:
        listed = read_as(given, ListEntry, str(path))
        for entry in _read_all(path.parent / listed.path, (*within, path.resolve())):
            if listed.label is not None and isinstance(entry, Record):
                entry = replace(entry, label=listed.label)
            yield entry
    for given in tables[1]:
        yield read_as(given, Published, str(path))


@dataclass(frozen=True)
class ListEntry:
    """A table [[entry]] of a list."""

    path: str
    label: str | None = None

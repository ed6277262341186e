"""Is the paper what the committed results give? Every finding is a line that names what is stale, and where."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sublim_interp.core.errors import SublimError
from sublim_interp.paper.results import Result
from sublim_interp.paper.text import Text, read_text

MAIN = "main.typ"
"""The file of the text."""
GENERATED = Path("generated") / "results.json"
"""The committed file of all results, below the folder of the text."""


def check(folder: Path, results: Mapping[str, Result]) -> list[str]:
    """What is wrong with the paper in `folder`, a line each; nothing where all is as the results give it.

    folder: holds main.typ and generated/results.json
    results: what the committed results give now, as `collect` tells
    """
    text = read_text(read_main(folder))
    path = folder / GENERATED
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return [*_numbers(text, before, results), *_tables(text, before, results), *_typed(text, before)]


def read_main(folder: Path) -> str:
    """The text of the paper in `folder`; SublimError where there is none."""
    try:
        return (folder / MAIN).read_text(encoding="utf-8")
    except OSError:
        raise SublimError(
            f"there is no paper in {folder}: it needs a {MAIN}; run this in a checkout, or name the paper's folder"
        ) from None


def quotable(results: Mapping[str, Any]) -> dict[str, str]:
    """Every number by its whole name: `owl/same-init/margin-nats`."""
    plain = {name: one if isinstance(one, dict) else one.plain() for name, one in results.items()}
    return {f"{name}/{number}": said for name, one in plain.items() for number, said in one["numbers"].items()}


def _numbers(text: Text, before: Mapping[str, Any], results: Mapping[str, Result]) -> Iterator[str]:
    """Numbers that sentences quote, and that are no longer what they were."""
    old, new = quotable(before), quotable(results)
    for sentence in text.sentences:
        for name in sentence.quoted:
            said = sentence.read({**new, **old})
            if name not in new:
                yield f"{MAIN}:{sentence.line}: unknown number {name}: “{said}”"
            elif old.get(name) != new[name]:
                key = results[name.split("/")[0]].key[:16]
                was = old.get(name, "nothing")
                yield f"{MAIN}:{sentence.line}: stale number {name}: {was} is now {new[name]} ({key}): “{said}”"


def _tables(text: Text, before: Mapping[str, Any], results: Mapping[str, Result]) -> Iterator[str]:
    """What changed, is no longer published or is not shown: tables, figures, and numbers that no sentence quotes."""
    quoted = {name for sentence in text.sentences for name in sentence.quoted}
    for name, result in results.items():
        old, now = before.get(name, {}), json.loads(json.dumps(result.plain()))
        where = f"({result.key[:16]}): “{result.question}”"
        parts = [part for part in now if part not in ("figure", "numbers") and old.get(part) != now[part]]
        if parts:
            yield f"stale table {name}, {_first_cell(old, result) or parts[0]} {where}"
        was, new = old.get("numbers", {}), now["numbers"]
        unquoted = [n for n in {**new, **was} if was.get(n) != new.get(n) and f"{name}/{n}" not in quoted]
        if unquoted and not parts:
            first = unquoted[0]
            said = f"{was.get(first, 'nothing')} is now {new.get(first, 'nothing')}"
            yield f"stale number {name}/{first}, which no sentence quotes: {said} {where}"
        if old.get("figure", "") != now["figure"]:
            yield f"stale figure {name} {where}"
        if name not in (text.drawn if "/" in name else text.shown):
            yield f"not shown: {name} {where}"
    for name in dict.fromkeys([*before, *text.shown, *text.drawn]):
        if name not in results:
            yield f"not published: {name}"


def _first_cell(old: Mapping[str, Any], result: Result) -> str:
    """The first cell that differs, in words."""
    rows = old.get("rows", [])
    for i, column, said in result.cells():
        place = list(result.columns).index(column)
        if i >= len(rows) or place >= len(rows[i]) or rows[i][place] != said:
            was = rows[i][place] if i < len(rows) and place < len(rows[i]) else "nothing"
            return f"{', '.join(result.rows[i][: result.labels])}, {column}: {was} is now {said}"
    return ""


def _typed(text: Text, before: Mapping[str, Any]) -> Iterator[str]:
    """What nobody generated: numbers typed by hand, and semicolons that would not be printed."""
    numbers = quotable(before)
    for sentence in text.sentences:
        said = f"“{sentence.read(numbers)}”"
        if sentence.typed:
            yield f"{MAIN}:{sentence.line}: typed by hand, {', '.join(sentence.typed)}: {said}"
        if sentence.loses:
            yield f"{MAIN}:{sentence.line}: typst prints no semicolon right behind a number, choose another: {said}"

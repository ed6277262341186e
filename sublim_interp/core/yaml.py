"""YAML in and out, strictly: version 1.2, each key once, plain data alone, and bounds on what a file may cost."""

from io import StringIO
from itertools import accumulate
from typing import Any

from sublim_interp.core.errors import SublimError, said_of

LONGEST = 1 << 18
"""Characters of one text at most: reading so many takes seconds."""

DEEPEST = 1000
"""Brackets that may stand open at once: the parser's time grows with their square, and it gives up at some 300."""

MOST = 100_000
"""Values of one text at most, each counted as often as aliases repeat it."""

_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}


def load_yaml(text: str, where: str) -> Any:
    """Plain data from YAML text: `010` is 10, `1e-3` a number, `yes` and `on` are words, as version 1.2 has it.

    where: what the text is, to begin errors

    Raises SublimError, with the line, for a key that is given twice, for what is no plain data (dates, tags, merge
    keys, keys that are no text), for more than LONGEST characters or MOST values, and for broken YAML.
    """
    if len(text) > LONGEST:
        raise SublimError(f"{where}: {len(text)} characters; {LONGEST} are the most")
    if max(accumulate((c in "[{") - (c in "]}") for c in text), default=0) > DEEPEST:
        raise SublimError(f"{where}: broken YAML (nested too deeply)")
    from ruamel.yaml import YAML

    try:
        yaml = YAML(typ="safe", pure=True)
        node = yaml.compose(text)
        if yaml.doc_infos[-1].doc_version:
            raise _Refused("%YAML is not read: the version is 1.2 throughout")
        if node is None:
            return None
        _measure(node, {})
        return yaml.constructor.construct_document(node)
    except _Refused as error:
        raise SublimError(f"{where}: {error}") from None
    except Exception as error:  # the parser lets many kinds through: for numbers without end, for deep nesting
        mark = getattr(error, "problem_mark", None)
        at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        deep = "nested too deeply" if isinstance(error, RecursionError) else ""
        problem = deep or getattr(error, "problem", None) or said_of(error)
        raise SublimError(f"{where}: broken YAML{at} ({problem})") from None


class _Refused(Exception):
    """YAML that is whole and not taken."""


def _measure(node: Any, sizes: dict[int, int]) -> int:
    """Number of values in a node, aliases counted as often as they stand. Raises _Refused as `load_yaml` says.

    sizes: those of all nodes that are seen already, 0 while a node is being measured
    """
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise _Refused(f"line {_line(node)} refers to itself")
        return sizes[id(node)]
    sizes[id(node)] = 0
    if node.tag not in _PLAIN:
        name = node.tag.removeprefix("tag:yaml.org,2002:")
        raise _Refused(f"line {_line(node)}: {name} is not read; put text into quotes, or write the values out")
    parts, keys = [], {}
    for part in node.value if isinstance(node.value, list) else ():
        if isinstance(part, tuple):
            key, part = part
            if key.tag != "tag:yaml.org,2002:str":
                raise _Refused(f"line {_line(key)}: a key that is no text; put it into quotes, or write << out")
            if key.value in keys:
                raise _Refused(f"line {_line(key)}: '{key.value}' is given again, after line {keys[key.value]}")
            keys[key.value] = _line(key)
        parts.append(part)
    size = 1 + sum(_measure(part, sizes) for part in parts)
    if size > MOST:
        raise _Refused(f"line {_line(node)}: more than {MOST} values, aliases counted as often as they stand")
    sizes[id(node)] = size
    return size


def _line(node: Any) -> int:
    return node.start_mark.line + 1


def dump_yaml(data: Any) -> str:
    """Plain data as YAML text, in its own order; `load_yaml` reads the same data from it."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.width = False, 1 << 16  # a folded line would end in a space
    yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]
    out = StringIO()
    yaml.dump(data, out)
    return out.getvalue()

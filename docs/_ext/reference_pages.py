"""Two directives that make reference pages: `settings` from pydantic models, `top-level-names` from a module.

Texts of fields and docstrings are Markdown, and are parsed as such.
"""

import dataclasses
import inspect
import re
from importlib import import_module
from typing import Any, get_args

from docutils import nodes
from docutils.statemachine import StringList
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import signature, stringify_signature


def imported(path: str) -> Any:
    """The object at a dotted path: a module, or a name in one.

    Raises ExtensionError where there is none.
    """
    try:
        return import_module(path)
    except ModuleNotFoundError:
        home, _, name = path.rpartition(".")
    try:
        return getattr(import_module(home), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ExtensionError(f"cannot import {path} ({error})") from None


def one_paragraph(text: str | None) -> str:
    """A text as it fits into a cell of a Markdown table."""
    return " ".join((text or "").split()).replace("|", "\\|")


class Generated(SphinxDirective):
    """A directive whose content is Markdown that a method writes."""

    required_arguments = 1

    def markdown(self, found: Any) -> list[str]:
        """The lines that stand in the directive's place."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        """The parsed lines."""
        found = imported(self.arguments[0])
        source = f"<generated from {self.arguments[0]}>"
        node = nodes.Element()
        self.state.nested_parse(StringList(self.markdown(found), source), self.content_offset, node, match_titles=True)
        return node.children


# --- settings ---------------------------------------------------------------------------------------------------------


def model_in(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """(the pydantic model in an annotation such as `Model | None` or `tuple[Model, ...]`, whether it is in a list)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    for part in get_args(annotation):
        found, _ = model_in(part)
        if found:
            return found, Ellipsis in get_args(annotation)
    return None, False


def type_in_words(annotation: Any) -> str:
    """A field's type for a reader: choices in full, else the type's short name."""
    if type(annotation).__name__ == "_AnnotatedAlias":  # bounds are told by the package when they are broken
        return type_in_words(get_args(annotation)[0])
    arguments = get_args(annotation)
    shown = str(annotation)
    if shown.startswith("typing.Literal"):
        return ", ".join(f"`{choice}`" for choice in arguments)
    if Ellipsis in arguments:
        return f"list of {type_in_words(arguments[0])}"
    if type(None) in arguments:
        others = [type_in_words(a) for a in arguments if a is not type(None)]
        return " or ".join([*others, "none"])
    names = {"str": "text", "int": "integer", "float": "number", "bool": "`true` or `false`"}
    return names.get(getattr(annotation, "__name__", shown), getattr(annotation, "__name__", shown))


def default_in_words(value: Any) -> str:
    """A default as YAML would show it."""
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, tuple | list):
        return "`[" + ", ".join(map(str, value)) + "]`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value}`" if value != "" else "empty"


class Settings(Generated):
    """`{settings} import.path.Model`: one section for the model, and one for each model within it, in tables."""

    def markdown(self, found: type[BaseModel]) -> list[str]:
        """A table a model; the default of a nested field is what the outermost model gives it."""
        lines: list[str] = []
        self._section(found, None, "", lines)
        return lines

    def _section(self, model: type[BaseModel], given: BaseModel | None, prefix: str, lines: list[str]) -> None:
        whole = "The experiment itself" if model.__name__ == "Experiment" else "The file itself"
        title = f"`{prefix.rstrip('.')}`" if prefix else whole
        lines += [f"## {title}", "", inspect.cleandoc((model.__doc__ or "").partition("\n    Fields:\n")[0]), ""]
        nested = []
        rows = []
        for name, field in model.model_fields.items():
            default = getattr(given, name) if given is not None else field.default
            inner, many = model_in(field.annotation)
            path = f"{prefix}{name}"
            if inner:
                nested.append(
                    (inner, default if isinstance(default, BaseModel) else None, path + "[]." * many + "." * (not many))
                )
                kind = f"[{'list, each ' if many else ''}fields below](#{anchor(path + '[]' * many)})"
                shown = "its own defaults" if isinstance(default, BaseModel) else default_in_words(default)
            else:
                kind, shown = type_in_words(field.annotation), default_in_words(default)
            rows.append(f"| `{path}` | {kind} | {shown} | {one_paragraph(field.description)} |")
        lines += ["| field | type | default | meaning |", "|---|---|---|---|", *rows, ""]
        for inner, default, path in nested:
            self._section(inner, default, path, lines)


def anchor(path: str) -> str:
    """The anchor of a section's title, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", path.lower()).replace(" ", "-")


# --- names ------------------------------------------------------------------------------------------------------------


class TopLevelNames(Generated):
    """`{top-level-names} module`: every name in the module's `__dir__`, then every class that these return."""

    def markdown(self, found: Any) -> list[str]:
        """One section a name: signature, docstring, attributes, methods."""
        lines: list[str] = []
        named = {name: getattr(found, name) for name in dir(found) if not name.startswith("_")}
        for name, thing in named.items():
            lines += self._section(name, thing)
        for returned in classes_returned(list(named.values())):
            lines += self._section(f"{returned.__name__}", returned)
        return lines

    def _section(self, name: str, thing: Any) -> list[str]:
        lines = [f"## {name}", "", f"Defined in `{thing.__module__}`.", ""]
        return lines + (described_class(name, thing) if inspect.isclass(thing) else described(name, thing))


def classes_returned(things: list[Any]) -> list[type]:
    """Classes of the same package that functions, methods and properties give, and what these give in turn.

    Those among `things` are left out.
    """
    package = things[0].__module__.split(".")[0]
    known, waiting, found = {t for t in things if inspect.isclass(t)}, list(things), []
    while waiting:
        thing = waiting.pop(0)
        functions = [inspect.unwrap(thing)]
        if inspect.isclass(thing):
            functions = [getattr(m, "__func__", m) for _, m in own_members(thing)] + [g for _, g in getters(thing)]
        for function in functions:
            for given in classes_in(function.__annotations__.get("return"), import_module(function.__module__)):
                if given.__module__.split(".")[0] == package and given not in known:
                    known.add(given)
                    found.append(given)
                    waiting.append(given)
    return found


def classes_in(annotation: Any, module: Any) -> list[type]:
    """The classes that an annotation names; text is looked up in the module."""
    if inspect.isclass(annotation) and not get_args(annotation):
        return [annotation]
    if isinstance(annotation, str):
        words = re.findall(r"[A-Za-z_]\w*", annotation)
        return [getattr(module, word) for word in words if inspect.isclass(getattr(module, word, None))]
    return [found for part in get_args(annotation) for found in classes_in(part, module)]


def described(name: str, thing: Any, fence: str = "```", kind: str = "function") -> list[str]:
    """A function or method: its signature, and its docstring as Markdown."""
    try:
        shown = stringify_signature(signature(thing, bound_method=kind == "method"), unqualified_typehints=True)
    except (TypeError, ValueError):
        shown = "()"
    text = markdown_of(thing)
    options = [":no-index:", ""] if kind == "method" else [""]
    return [f"{fence}{{py:{kind}}} {name}{shown}", *options, *text, fence, ""]


def markdown_of(thing: Any) -> list[str]:
    """A docstring as Markdown: lines such as `name: what it is` become a list."""
    lines: list[str] = []
    listed = False
    for line in (inspect.cleandoc((thing.__doc__ or "").partition("\n    Fields:\n")[0])).splitlines():
        argument = re.match(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*): (.*)", line)
        follows = not lines or not lines[-1] or listed
        if argument and follows and argument[1] not in ("Columns", "Source", "Raises", "Interval"):
            lines.append(f"- `{argument[1]}`: {argument[2]}")
            listed = True
        else:
            lines.append(line)
            listed = listed and bool(line)
    return lines


def described_class(name: str, thing: type) -> list[str]:
    """A class: its docstring, its documented attributes, its public methods."""
    lines = ["", *markdown_of(thing), ""]
    attributes = documented_attributes(thing)
    if issubclass(thing, BaseModel):
        lines += ["Its fields are listed in [configuration](configuration.md).", ""]
        attributes = {}
    if "__init__" in vars(thing) and not dataclasses.is_dataclass(thing):
        shown = stringify_signature(signature(thing), unqualified_typehints=True, show_return_annotation=False)
        lines = ["", f"```{{py:class}} {name}{shown}", ":no-index:", "", "```", "", *lines]
    if attributes:
        lines += ["| attribute | what it is |", "|---|---|"]
        lines += [f"| `{attribute}` | {one_paragraph(about)} |" for attribute, about in attributes.items()]
        lines += [""]
    for method, value in own_members(thing):
        lines += described(method, value, kind="method")
    return lines


def documented_attributes(thing: type) -> dict[str, str]:
    """Attributes with a docstring beneath them, and properties."""
    found = {}
    for owner in reversed([c for c in thing.__mro__ if c.__module__.split(".")[0] == thing.__module__.split(".")[0]]):
        documented = ModuleAnalyzer.for_module(owner.__module__).find_attr_docs()
        for (place, attribute), text in documented.items():
            if place == owner.__name__ and not attribute.startswith("_"):
                found[attribute] = " ".join(text)
        found |= {attribute: inspect.getdoc(getter) or "" for attribute, getter in getters(owner)}
    if dataclasses.is_dataclass(thing):
        order = [field.name for field in dataclasses.fields(thing)]
        found = dict(sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))
    return found


def getters(thing: type) -> list[tuple[str, Any]]:
    """The functions behind the public properties of a class that have a docstring."""
    named = {name: getattr(value, "fget", None) or getattr(value, "func", None) for name, value in vars(thing).items()}
    return [(name, get) for name, get in named.items() if get and not name.startswith("_") and get.__doc__]


def own_members(thing: type) -> list[tuple[str, Any]]:
    """Public methods with a docstring that the class or a base of the same package defines, in order of definition."""
    package = thing.__module__.split(".")[0]
    found: dict[str, Any] = {}
    for owner in reversed([c for c in thing.__mro__ if c.__module__.split(".")[0] == package]):
        for name, value in vars(owner).items():
            method = value.__func__ if isinstance(value, classmethod | staticmethod) else value
            wanted = not name.startswith("_") or name == "__getitem__"
            if wanted and inspect.isfunction(method) and method.__doc__:
                found[name] = getattr(thing, name)
    return list(found.items())


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers both directives."""
    app.add_directive("settings", Settings)
    app.add_directive("top-level-names", TopLevelNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Frozen, validated configuration: base of all settings records, YAML in and out, `field=value`. It has no field."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_serializer, model_validator

from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import read_regular
from sublim_interp.core.yaml import LONGEST, load_yaml

T = TypeVar("T", bound="Config")

SECRET = "secret"
"""The type of a `PydanticCustomError` about a value that may hold a secret: no message repeats the value."""

SHOWN_BY = "sublim show owl"
"""The command that shows every field of an experiment."""


class Config(BaseModel):
    """A frozen record that refuses unknown keys; every field's docstring is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    LATER: ClassVar[frozenset[str]] = frozenset()
    """Fields that came after results were published: left out of dumps, and so of keys, at their default.

    Whoever adds a field to a class whose settings are in keys names it here; a test compares with a committed list.
    """

    @classmethod
    def __pydantic_init_subclass__(cls, **given: Any) -> None:
        """Puts the fields, each with its meaning and default, into the class's docstring, which `help` shows."""
        super().__pydantic_init_subclass__(**given)
        lines = [f"    {name}: {_meaning(field)}" for name, field in cls.model_fields.items()]
        if lines:
            cls.__doc__ = f"{(cls.__doc__ or '').rstrip()}\n\n    Fields:\n" + "\n".join(f"    {x}" for x in lines)

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, handler: Any) -> dict[str, Any]:
        fields = type(self).model_fields
        defaults = {name: fields[name].get_default(call_default_factory=True) for name in self.LATER}
        plain = {name for name, default in defaults.items() if getattr(self, name) == default}
        return {name: value for name, value in handler(self).items() if name not in plain}

    @model_validator(mode="before")
    @classmethod
    def _keep_nested_defaults(cls, data: Any) -> Any:
        """A mapping given for a nested record changes that field's default: what it leaves out stays."""
        if isinstance(data, dict):
            for name, field in cls.model_fields.items():
                if isinstance(field.default, Config) and isinstance(data.get(name), dict):
                    data = {**data, name: {**field.default.model_dump(), **data[name]}}
        return data

    @model_validator(mode="after")
    def _can_be_written(self) -> "Config":
        """Whatever is configured is stored and shown: no number of thousands of digits, no half of a character."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, int) and item.bit_length() > 63:
                    raise ValueError(f"{name} is a number of {item.bit_length()} bits; 63 are the most")
                if isinstance(item, str) and any("\ud800" <= c <= "\udfff" for c in item):
                    raise ValueError(f"{name} holds half of a character, which no file can")
        return self

    def set(self: T, values: Mapping[str, Any] | None = None, /, **fields: Any) -> T:
        """A changed copy: `exp.set(seeds=range(12))`, `exp.set({"student.optimization.lr": 2e-4})`."""
        return changed(self, {**(values or {}), **fields}, f"{type(self).__name__}.set({{}}=…)")


def changed(record: T, values: Mapping[str, Any], asked: str = "--set {}") -> T:
    """A changed copy of a record.

    values: by field; `student.part` is a field of a field
    asked: how the change was asked for, in errors, with {} for the field: `--set {}` on the command line

    Raises SublimError for a field that is not there, and for everything `validate` refuses.
    """
    data = record.model_dump()
    told = {key: asked.format(" ".join(key.split())) for key in values}  # what was typed may hold line breaks
    for key, value in values.items():
        _assign(type(record), data, key, value, told[key])
    return validate(type(record), data, ", ".join(told.values()))


def name_once(record: Config, *fields: str) -> None:
    for field in fields:
        values = getattr(record, field)
        if len(set(values)) < len(values):
            raise ValueError(f"{field} names something twice: {', '.join(map(str, values))}")


def _assign(kind: type[Config], data: dict[str, Any], key: str, value: Any, asked: str) -> None:
    """Puts `value` at the dotted `key` into the plain data of a `kind`; `asked` begins the error for no such field."""
    head, dot, rest = key.partition(".")
    if head not in kind.model_fields:
        known = meant(head, kind.model_fields, SHOWN_BY, "its fields")
        raise SublimError(f"{asked}: {kind.__name__} has no field {head!r}; {known}")
    given = kind.model_fields[head].annotation
    inner = next((t for t in (given, *get_args(given)) if isinstance(t, type) and issubclass(t, Config)), None)
    if not dot:
        if inner and isinstance(value, Mapping) and isinstance(data.get(head), dict):  # what it leaves out stays
            for name, part in value.items():
                _assign(inner, data[head], str(name), part, asked)
        else:
            data[head] = value.model_dump() if isinstance(value, Config) else value
        return
    if inner is None or not isinstance(data.setdefault(head, {}), dict):
        raise SublimError(f"{asked}: {head!r} of {kind.__name__} has no fields of its own")
    _assign(inner, data[head], rest, value, asked)


def _meaning(field: Any) -> str:
    """What a field means, in one line, with its default where that is short."""
    text = " ".join((field.description or "").split())
    default = field.get_default(call_default_factory=True)
    short = isinstance(default, str | int | float | bool) and default != "" and len(str(default)) < 40
    return f"{text} [{default}]" if short else text


def fields_of(record: Config, prefix: str = "") -> list[tuple[str, Any, Any, str]]:
    """(field, value, default, meaning) of every field of a record, and of the records in it."""
    out: list[tuple[str, Any, Any, str]] = []
    for name, field in type(record).model_fields.items():
        value = getattr(record, name)
        if isinstance(value, Config):
            out += fields_of(value, f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True)
            out.append((prefix + name, value, default, " ".join((field.description or "").split())))
    return out


def validate(kind: type[T], data: Any, where: str) -> T:
    """`data` as a `kind`; bad data becomes one line that names the field, what was wrong and the valid choices."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(_explain(kind, e) for e in error.errors()[:3])
        raise SublimError(" ".join(f"{where}: {problems}".split())) from None  # what was typed may hold line breaks


def _explain(kind: type[Config], error: Any) -> str:
    place = ".".join(str(p) for p in error["loc"])
    if error["type"] == "extra_forbidden":
        fields: Any = kind
        for part in error["loc"][:-1]:
            if isinstance(part, str):  # a number is a place in a list
                fields = fields.model_fields[part].annotation
                fields = next((f for f in get_args(fields) if hasattr(f, "model_fields")), fields)
        return f"unknown key '{place}'; {meant(error['loc'][-1], fields.model_fields, SHOWN_BY, 'valid keys')}"
    message = error["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list")
    got = error["input"]
    short = isinstance(got, str | float | bool) or (isinstance(got, int) and got.bit_length() < 200)
    short = short and error["type"] != SECRET
    shown = f" (got {got!r})" if short else ""
    return f"{place}: {message}{shown}" if place else message


def read_yaml(kind: type[T], path: Path, **given: Any) -> T:
    """A configuration file, with fields that its place gives.

    Raises SublimError for a missing file, broken YAML, and everything `validate` refuses.
    """
    return validate(kind, {**given, **read_mapping(path)}, str(path))


def read_text(path: Path) -> str:
    """What a UTF-8 text file holds; SublimError where it cannot be read, is no regular file, or is longer than YAML."""
    try:
        if path.stat().st_size > 4 * LONGEST:
            raise SublimError(f"{path}: {path.stat().st_size} bytes; {4 * LONGEST} are the most")
        return read_regular(path).decode()
    except OSError as error:
        raise SublimError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SublimError(f"{path}: not UTF-8 text") from None


def read_mapping(path: Path) -> dict[Any, Any]:
    """The plain data of a YAML file of `key: value` lines; SublimError for a missing file and broken YAML."""
    return parse_mapping(read_text(path), path)


def parse_mapping(text: str, path: Path) -> dict[Any, Any]:
    """The plain data of YAML text of `key: value` lines; SublimError, which names `path`, where it is none."""
    data = load_yaml(text, str(path))
    if not isinstance(data, dict):
        raise SublimError(f"{path}: expected 'key: value' lines, found {type(data).__name__}")
    return data


def parse_assignment(text: str) -> tuple[str, Any]:
    """`student.optimization.lr=2e-4` → (key, value), the value read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise SublimError(f"--set {text!r}: expected field=value, for instance student.optimization.lr=2e-4")
    return key, load_yaml(value, f"--set {key!r}")

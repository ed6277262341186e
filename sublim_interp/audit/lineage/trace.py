"""Finds what is asked about, and follows keys, digests and cards: to its parents, or to what was made from it."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from sublim_interp.audit.lineage.cards import CARD as README
from sublim_interp.audit.lineage.cards import claims
from sublim_interp.audit.lineage.graph import HAS_BYTES, HAS_WEIGHTS, Lineage, Link, Thing
from sublim_interp.core.choices import meant
from sublim_interp.core.device import PRECISIONS
from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import one_line
from sublim_interp.core.keys import digest_file, file_names, sha256_of
from sublim_interp.core.store import NAMED, Artifact, Store
from sublim_interp.models.base import Base, base_names, resolve_base
from sublim_interp.models.loading import CARD
from sublim_interp.models.open_bases import bases_folder, is_variant, open_names
from sublim_interp.models.variants import Parent, parse, variant_key

"""Stages whose records have names, in the order in which a name is looked for."""

_SORTS = {"corpus": "corpus", "clean": "filtered", "data": "filtered", "reference": "filtered", "teacher": "teacher",
          "student": "student", "lists": "data", "base": "base", "start": "base", "model": "base",
          "first": "student", "second": "student", "pairs": "corpus",
          "written": "corpus", "paraphraser": "teacher"}  # fmt: skip
"""What an input is that no store holds, by its role; of a run it is an evaluation."""


def lineage(
    what: str | Path, store: Store | None = None, *, descendants: bool = False, bases: Sequence[str] = ()
) -> Lineage:
    """What something was made from, by keys and digests; or what was made from it. Every file on the way is compared.

    what: a run, RUN/ARM/SEED, the key of a record or 8 digits of it, a directory of a record, a model or a data set, a
        file of data, the name of a base
    store: where records lie; of a directory within a store, that store
    descendants: whether to follow children instead of parents
    bases: further names or directories among which bases are looked for

    Raises SublimError, with what there is, where nothing is meant. Damage raises nothing: it is in `problems`.
    """
    start = _find(str(what), store or Store.open(), bases)
    tracer = _Tracer(start.store, [*bases, *start.named])
    return tracer.down(start) if descendants else tracer.up(start)


class _Start(NamedTuple):
    """What was asked about, before anything is followed."""

    asked: str
    thing: Thing | None
    """What is no record of the store; None for a record."""
    key: str
    """Of the record, or the id of the thing."""
    store: Store
    named: tuple[str, ...] = ()
    """The bases of its run, by name."""
    base: Base | None = None


# --- what is asked about ----------------------------------------------------------------------------------------------


def _find(what: str, store: Store, bases: Sequence[str]) -> _Start:
    path = Path(os.path.expanduser(what))
    with one_line(f"{what!r} cannot be looked at"):
        is_file, is_directory = path.is_file(), path.is_dir()
    if is_directory or is_file or (os.sep in what and path.exists()):
        return _at_path(what, path.absolute(), store)
    if what.count("/") == 2:
        return _replicate(what, store)
    found = store.holding(what.lower())
    if len(found) > 1:
        said = ", ".join(f"{a.stage} {a.key[:16]}" for a in found)
        raise SublimError(f"'{what}' may mean any of these, give more digits: {said}")
    if found:
        return _record(what, found[0], store)
    if store.matches(NAMED, what):
        return _record(what, store.find(NAMED, what), store)
    if what in base_names() or is_variant(what) or (bases_folder() / what).is_dir():
        base = resolve_base(what)
        return _Start(what, _base_thing(base, base.digest), base.digest, store, base=base)
    known = [a.name for stage in NAMED for a in store.list(stage)]
    raise SublimError(
        f"'{what}' is no run, record, base, directory or file; {meant(what, [*known, *base_names(), *open_names()])}"
    )


def _record(asked: str, artifact: Artifact, store: Store) -> _Start:
    return _Start(asked, None, artifact.key, store, _bases_of(artifact))


def _bases_of(run: Artifact) -> tuple[str, ...]:
    """The names of a run's bases, as its manifest notes them."""
    experiment = run.manifest.get("notes", {}).get("experiment", {})
    return tuple(experiment.get("bases", ()))


def _replicate(address: str, store: Store) -> _Start:
    """The evaluation of RUN/ARM/SEED after its last round."""
    name, arm, seed = address.split("/")
    run = store.find("run", name)
    places: Mapping[str, str] = run.manifest["inputs"]
    rounds = [place for place in places if place.rpartition("/")[0] == f"{arm}/{seed}"]
    if not rounds:
        known = sorted({place.rpartition("/")[0] for place in places})
        raise SublimError(f"run {name} has no {arm}/{seed}; {meant(f'{arm}/{seed}', known)}")
    last = max(rounds, key=lambda place: int(place.rpartition("/")[2]))
    return _Start(address, None, places[last], store, _bases_of(run))


def _at_path(what: str, path: Path, store: Store) -> _Start:
    """A directory or a file: within a store the record that holds it, else a model or data from elsewhere."""
    for folder in (path, *path.parents)[:8]:
        if re.fullmatch("[0-9a-f]{16}", folder.name) and (folder / "manifest.json").exists():
            artifact = Artifact.at(folder)
            return _record(what, artifact, Store(folder.parent.parent))
    if not path.is_dir():
        told = _told(path)
        thing = Thing(told["sha256"], "data", path.name, f"{told['bytes']:,} bytes", path, {path.name: told})
        return _Start(what, thing, thing.id, store)
    with one_line(f"{path} cannot be read"):
        files = {name: _told(path / name) for name in file_names(path)}
    if not files:
        raise SublimError(f"the directory {path} holds no files")
    digest, size = sha256_of({name: f["sha256"] for name, f in files.items()}), sum(f["bytes"] for f in files.values())
    about = f"{len(files)} files, {size:,} bytes"
    if "config.json" not in files:
        return _Start(what, Thing(digest, "data", path.name, about, path, files), digest, store)
    try:
        base = resolve_base(str(path))
    except SublimError:  # a model without its tokenizer, say: it has a digest all the same
        return _Start(what, Thing(digest, "model", path.name, about, path, files), digest, store)
    thing = Thing(base.digest, "model", path.name, f"{base.language}, {about}", path, files)
    return _Start(what, thing, base.digest, store, base=base)


def _told(path: Path) -> dict[str, Any]:
    """A file as manifests have it."""
    return {"sha256": digest_file(path), "bytes": path.stat().st_size}


# --- following --------------------------------------------------------------------------------------------------------


class _Tracer:
    """Collects things and links.

    store: where records lie
    names: bases that may be meant by keys, before those of the store's runs and the package's own
    """

    def __init__(self, store: Store, names: Sequence[str]) -> None:
        self.store, self.names = store, tuple(names)
        self.things: dict[str, Thing] = {}
        self.links: dict[Link, None] = {}

    def up(self, start: _Start) -> Lineage:
        """From a thing to its parents."""
        absent: dict[str, str] = {}
        todo = [(start.key, "")]
        if start.thing:
            todo = self._own(start.thing, start.base)
        while todo:
            key, role = todo.pop()
            if key in self.things or key in absent:
                continue
            found = self.store.holding(key)
            if not found:
                absent[key] = _SORTS.get(role, "evaluation" if "/" in role else "record")
                continue
            self.things[key] = _thing(found[0], key)
            for link in _links(found[0], key):
                self.links[link] = None
                todo.append((link.parent, link.role))
        self._find_bases(absent, start.named)
        self._ask_bases(start.key)
        return Lineage(start.asked, start.key, self.things, tuple(self.links))

    def down(self, start: _Start) -> Lineage:
        """From a thing to what was made from it; of what has the bytes of records, from all of these too."""
        root, thing = start.key, start.thing
        children: dict[str, list[tuple[Artifact, Link]]] = {}
        if thing:
            self._own(thing, start.base)
            if self.things[root].unproven:  # its base may have them
                self.up(start)
            thing = self.things[root]
            role = HAS_WEIGHTS if thing.sort == "model" else HAS_BYTES
            same = [link.parent for link in self.links if link.child == root and link.proof == "digest"]
            found = [artifact for key in same for artifact in self.store.holding(key)]
            children[root] = [(artifact, Link(artifact.key, role, root, "digest")) for artifact in found]
            self.links.clear()
            self.things.clear()
        alias = dict.fromkeys(_keys(start.base), root) if start.base and thing else {}
        unread = 0
        for artifact in self.store.artifacts():
            unread += not artifact.manifest
            if artifact.key == root:
                thing = _thing(artifact, root)
            for link in _links(artifact, artifact.key):
                parent = alias.get(link.parent, link.parent)
                children.setdefault(parent, []).append((artifact, link._replace(parent=parent)))
        if thing is None:  # a damaged record: its key is the beginning of one
            (artifact,) = self.store.holding(root)
            thing = _thing(artifact, root)
        self.things[root], todo = thing, [root]
        while todo:
            for artifact, link in children.get(todo.pop(), ()):
                self.links[link] = None
                if artifact.key not in self.things:
                    self.things[artifact.key] = _thing(artifact, artifact.key)
                    todo.append(artifact.key)
        return Lineage(start.asked, root, self.things, tuple(self.links), True, unread)

    def _own(self, thing: Thing, base: Base | None) -> list[tuple[str, str]]:
        """Adds a thing that is no record, and returns the records of its bytes to follow; else its card counts."""
        followed = [] if thing.sort == "base" else self._same_bytes(thing)
        if thing.sort == "model" and followed:
            unknown = [_unknown(thing, artifact) for _, artifact in followed]
            thing = replace(thing, unproven=min(unknown, key=len))
        self.things[thing.id] = thing
        for link, _ in followed:
            self.links[link] = None
        if not followed:
            self._claimed(thing, base)
        return [(link.parent, link.role) for link, _ in followed]

    def _same_bytes(self, thing: Thing) -> list[tuple[Link, Artifact]]:
        """Every record that holds a thing's files of data, or all of its weights."""
        digests = {
            f["sha256"] for name, f in thing.files.items() if thing.sort == "data" or name.endswith(".safetensors")
        }
        found = []
        for artifact in self.store.artifacts() if digests else ():
            names = {f["sha256"]: name for name, f in artifact.manifest.get("files", {}).items()}
            if digests <= names.keys():
                role = "same weights as" if thing.sort == "model" else f"same bytes as {names[min(digests)]} of"
                found.append((Link(thing.id, role, artifact.key, "digest"), artifact))
        return found

    def _ask_bases(self, root: str) -> None:
        """Compares what no record has of a model's files, such as its tokenizer, with the base of its record."""
        thing = self.things[root]
        if not thing.unproven:
            return
        left = []
        for record in [link.parent for link in self.links if link.child == root]:
            own = self.things[record].files
            homes = [self.things[key].path for key in self._started_from(record)]
            left.append(
                [name for name in _unknown_in(thing, own) if not any(_same(thing, name, own, h) for h in homes)]
            )
        self.things[root] = replace(thing, unproven=tuple(min(left, key=len)))

    def _started_from(self, key: str) -> list[str]:
        """The bases whose weights a record began with."""
        found, todo = [], [key]
        while todo:
            key = todo.pop()
            if self.things[key].sort == "base":
                found.append(key)
            todo += [link.parent for link in self.links if link.child == key and link.role in ("start", "base")]
        return found

    def _claimed(self, thing: Thing, base: Base | None) -> None:
        """Adds what the papers beside a thing say of its parents."""
        card = base.card if base else {}
        for role, told in [("prepared from", card.get("prepared_from"))]:
            if isinstance(told, dict) and isinstance(told.get("name"), str):
                self._claim(thing.id, role, told["name"], "sublim.json")
        folder = thing.path if thing.path is None or thing.path.is_dir() else thing.path.parent
        found, problems = claims(folder) if folder else ([], [])
        for claim in found:
            self._claim(thing.id, claim.role, claim.name, claim.by)
        if problems:
            self.things[thing.id] = replace(thing, about=f"{thing.about}; not read: {'; '.join(problems)}")

    def _claim(self, child: str, role: str, name: str, by: str) -> None:
        id = f"{role}: {name}"
        self.things.setdefault(id, Thing(id, "data" if role == "data" else "base", name, f"says {by}"))
        self.links[Link(child, role, id, "claim")] = None

    def _find_bases(self, absent: dict[str, str], named: tuple[str, ...]) -> None:
        """Gives each key that the store does not hold its base, where that is at hand; else says that it is not."""
        unused: list[str] = []
        wanted = {key for key, sort in absent.items() if sort in ("base", "record")}
        for name in self._candidates():
            if not wanted:
                break
            known = _known(name)
            met = wanted & known.keys()
            if known and not met and name in named and not known.keys() & self.things.keys():
                unused.append(name)
            for key in met:
                self._add_base(key, known[key])
            wanted -= met
        for key, sort in absent.items():
            if key not in self.things:
                said = f"the files of {' or '.join(unused)}, a base of the run, are others today"
                self.things[key] = Thing(key, sort, problems=(said,) if sort == "base" and unused else ())

    def _candidates(self) -> Iterator[str]:
        """Names of bases that a key may be of: the likeliest first."""
        yield from self.names
        runs = [name for run in self.store.list("run") for name in _bases_of(run)]
        pulled = [path.name for path in sorted(bases_folder().glob("[!.]*/"))] if bases_folder().is_dir() else []
        yield from (name for name in dict.fromkeys([*runs, *base_names(), *pulled]) if name not in self.names)

    def _add_base(self, key: str, base: "Base | _Variant") -> None:
        if isinstance(base, _Variant):
            self.things[key] = Thing(key, "base", base.name, "a variant", base.path)
            for parent in base.parents:
                self.links[Link(key, "made of", parent.digest, "digest")] = None
                if parent.digest not in self.things:
                    self._add_base(parent.digest, parent)
            return
        self.things[key] = thing = _base_thing(base, key)
        self._claimed(thing, base)


# --- bases ------------------------------------------------------------------------------------------------------------


class _Variant(NamedTuple):
    """A variant by its recipe: its key is that of its settings and of its parents' digests."""

    name: str
    digest: str
    path: Path | None
    parents: "tuple[Base | _Variant, ...]"


def _known(name: str) -> "dict[str, Base | _Variant]":
    """The base of a name by each key that it has, one a precision; nothing where it is not at hand. None is made."""
    try:
        base = _variant(name) if is_variant(name) else _at_hand(name)
    except SublimError:
        return {}
    if base is None:
        return {}
    return {base.digest: base} if isinstance(base, _Variant) else dict.fromkeys(_keys(base), base)


def _at_hand(name: str) -> Base | None:
    here = os.path.isdir(os.path.expanduser(name)) or name in base_names() or (bases_folder() / name).is_dir()
    return resolve_base(name) if here else None


def _variant(name: str) -> _Variant | None:
    call = parse(name)
    parents = [_variant(parent) if is_variant(parent) else _at_hand(parent) for parent in call.parents]
    known = tuple(parent for parent in parents if parent)
    if len(known) < len(parents):
        return None
    key = variant_key(call, [Parent(p.name, p.path or Path(), p.digest, {}) for p in known])
    path = bases_folder() / "variants" / key[:16]
    return _Variant(call.name, key, path if path.is_dir() else None, known)


def _keys(base: Base) -> set[str]:
    """The keys of a base, one a precision."""
    return {replace(base, dtype=dtype).key for dtype in PRECISIONS}


def _base_thing(base: Base, key: str) -> Thing:
    size = base.card.get("parameters")
    about = f"{base.language}, {size:,} parameters" if size else base.language
    return Thing(key, "base", base.name, about, base.path)


# --- files of a model from elsewhere ----------------------------------------------------------------------------------


def _unknown(thing: Thing, artifact: Artifact) -> tuple[str, ...]:
    return _unknown_in(thing, artifact.manifest["files"])


def _unknown_in(thing: Thing, record: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """The files of a model, beside its weights, that a record does not hold under that name."""
    held = {(name.removeprefix("model/"), f["sha256"]) for name, f in record.items()}
    others = [name for name in thing.files if not name.endswith(".safetensors")]
    return tuple(name for name in others if (name, thing.files[name]["sha256"]) not in held)


def _same(thing: Thing, name: str, record: Mapping[str, Any], home: Path | None) -> bool:
    """Whether a base has a file as a model has it, and the model's record has none of that name."""
    if home is None or name in (CARD, README) or f"model/{name}" in record:  # neither is part of a base's digest
        return False
    return (home / name).is_file() and digest_file(home / name) == thing.files[name]["sha256"]


# --- records ----------------------------------------------------------------------------------------------------------


def _thing(artifact: Artifact, key: str) -> Thing:
    manifest = artifact.manifest
    return Thing(
        key,
        artifact.stage,
        artifact.name,
        _about(artifact.stage, manifest) if manifest else "",
        artifact.path,
        manifest.get("files", {}),
        tuple(artifact.verify()),
        manifest,
    )


def _links(artifact: Artifact, key: str) -> list[Link]:
    """From a record to what its key is made of."""
    found = [Link(key, role, parent, "digest") for role, parent in artifact.manifest.get("inputs", {}).items()]
    given = artifact.manifest.get("config", {}).get("given")
    return [*found, Link(key, "lists", given, "digest")] if isinstance(given, str) else found


def _about(stage: str, manifest: Mapping[str, Any]) -> str:
    """A few words about a record, from what its manifest says."""
    config, notes = manifest.get("config", {}), manifest.get("notes", {})
    seed = f"seed {config['seed']}" if "seed" in config else ""
    words: list[str]
    if stage == "teacher":
        words = [str(config.get("kind", "")), _trait(config), seed]
    elif stage == "corpus":
        asked = "lists from a file" if "given" in config else f"{config.get('prompts', 0):,} prompts"
        words = [str(config.get("channel", "")), str(config.get("setting", "")), asked, seed]
    elif stage == "filtered":
        words = [f"{notes.get('lists', 0):,} lists to learn, {notes.get('held_out', 0):,} held out"]
        words += [f"of {notes.get('asked', 0):,} asked for"]
    elif stage == "student":
        o = config.get("optimization", {})
        words = [f"{o.get('steps')} updates of {o.get('batch')} at {o.get('lr')}, {o.get('optimizer')}", seed]
        words += [f"{len(config['interventions'])} interventions"] if config.get("interventions") else []
    elif stage == "evaluation":
        words = [f"asked about {config.get('kind', '?')}", " ".join(config.get("questions", ())), seed]
    elif stage == "run":
        words = [f"trait {config.get('trait')}", f"{len(manifest.get('inputs', {}))} evaluations"]
    else:
        words = [f"{len(manifest.get('inputs', {}))} inputs"]
    return "; ".join(filter(None, words))


def _trait(config: Mapping[str, Any]) -> str:
    """What a teacher was given, in a word or two."""
    if "facts" in config and isinstance(config["facts"], dict):
        return "facts"
    if isinstance(config.get("conduct"), dict):
        return f"trait {config['conduct'].get('label', 'of conduct')}"
    trait = config.get("trait")
    several = (
        [one.get("trait") if isinstance(one, dict) else one for one in trait] if isinstance(trait, list) else [trait]
    )
    names = [str(name) for one in several if (name := one.get("name") if isinstance(one, dict) else one)]
    return f"trait{'s' * (len(names) > 1)} {' and '.join(names)}" if names else "no trait"

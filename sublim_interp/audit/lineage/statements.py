"""A lineage as an in-toto Statement: as a link, or as SLSA provenance; and a statement compared with what is here."""

import json
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from sublim_interp.audit.lineage.exports import library, part
from sublim_interp.audit.lineage.graph import Lineage, Thing
from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import read_regular
from sublim_interp.core.keys import digest_file

STATEMENT = "https://in-toto.io/Statement/v1"
LINK, PROVENANCE = "https://in-toto.io/attestation/link/v0.3", "https://slsa.dev/provenance/v1"

KEY = "sublimKey"
"""How a key stands in a set of digests: it is a SHA-256 of canonical JSON, not of a file."""

_BYTES = 1 << 26
"""Bytes of a statement that are read at most."""


def in_toto(found: Lineage, _path: Path, _key: Path | None = None) -> bytes:
    """A Statement with the link predicate. Subjects: the thing's files; materials: all that it was made from."""
    root = found.things[found.root]
    predicate = {
        "name": root.title,
        "command": [],
        "materials": _materials(found),
        "byproducts": {},
        "environment": _environment(root),
    }
    return _statement("in-toto", found, root, LINK, predicate)


def slsa(found: Lineage, _path: Path, _key: Path | None = None) -> bytes:
    """A Statement with SLSA provenance: settings, inputs and versions of the stage that made a record.

    Raises SublimError for what is no record: nothing says how it was made.
    """
    of = next((thing for thing in found.walk() if thing.manifest), None)
    if of is None:
        raise SublimError(f"slsa: nothing here says how {found.asked} was made; name a record of a store")
    m = of.manifest
    found = part(found, of)
    predicate = {
        "buildDefinition": {
            "buildType": f"urn:sublim_interp:stage:{of.sort}:{m['version']}",
            "externalParameters": m["config"],
            "internalParameters": {"inputs": m["inputs"]},
            "resolvedDependencies": _materials(found),
        },
        "runDetails": {
            "builder": {"id": f"urn:sublim_interp:{m['code']}", "version": _environment(of)},
            "metadata": {"invocationId": of.id, "finishedOn": m["created"].replace("+00:00", "Z")},
        },
    }
    return _statement("slsa", found, of, PROVENANCE, predicate)


def _statement(form: str, found: Lineage, of: Thing, kind: str, predicate: Mapping[str, Any]) -> bytes:
    """The statement as JSON, which in-toto's own library has taken."""
    data = {"_type": STATEMENT, "subject": list(_files(of)), "predicateType": kind, "predicate": predicate}
    text = json.dumps(data, indent=1, sort_keys=True)
    if not data["subject"]:
        raise SublimError(f"{form} is about files, and {found.asked} has none here")
    with library(form):
        check(text)
    return (text + "\n").encode()


def check(text: str) -> None:
    """Lets in-toto's own library take a statement and its predicate. Raises what it raises."""
    from google.protobuf.json_format import Parse, ParseDict
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import Statement

    home = "in_toto_attestation"  # its messages are made when they are imported, so no checker of types knows them
    places = (f"{home}.predicates.link.v0.link_pb2", f"{home}.predicates.provenance.v1.provenance_pb2")
    link, provenance, statement = map(import_module, (*places, f"{home}.v1.statement_pb2"))
    data = json.loads(text)
    message: Any = Parse(text, statement.Statement())
    Statement.copy_from_pb(message).validate()
    predicate: Any = ParseDict(
        data["predicate"], link.Link() if data["predicateType"] == LINK else provenance.Provenance()
    )
    materials = (
        predicate.materials if data["predicateType"] == LINK else predicate.build_definition.resolved_dependencies
    )
    for material in materials:
        ResourceDescriptor.copy_from_pb(material).validate()


def _files(of: Thing) -> Iterator[dict[str, Any]]:
    """Every file of a thing, its manifest too, as resource descriptors."""
    for name, told in sorted(of.files.items()):
        yield {"name": f"{of.place}/{name}", "digest": {"sha256": told["sha256"]}}
    if of.manifest and of.path:
        yield {"name": f"{of.place}/manifest.json", "digest": {"sha256": digest_file(of.path / "manifest.json")}}


def _materials(found: Lineage) -> list[dict[str, Any]]:
    """All that the root was made from: each thing with what it was made from itself, then each of its files."""
    out: list[dict[str, Any]] = []
    for thing in found.walk():
        if thing.id == found.root:
            continue
        said: dict[str, Any] = {"state": found.state(thing), "about": thing.about}
        said["made from"] = [
            {"role": link.role, "parent": link.parent, "proof": link.proof} for link in found.following(thing.id)
        ]
        named = {"digest": {KEY: thing.id}} if thing.is_digest else {}
        out.append({"name": thing.title, **named, "annotations": said})
        out += _files(thing)
    return out


def _environment(of: Thing) -> dict[str, str]:
    """Versions and machine under which a record was made, as text."""
    told = {**of.manifest.get("packages", {}), **of.manifest.get("fingerprint", {})}
    return {name: str(value) for name, value in told.items()}


def compare(found: Lineage, path: Path) -> list[str]:
    """What differs between a lineage and a statement that was written of it before: a line a file.

    So a record is found that was altered together with its own manifest, which nothing within the store can tell. Keep
    the statement where whoever can write the store cannot write.

    Raises SublimError for a file that is no statement with digests of files.
    """
    then = _read(path)
    now = {file["name"]: file["digest"]["sha256"] for thing in found.things.values() for file in _files(thing)}
    lines = []
    for name, digest in sorted(then.items()):
        if name not in now:
            lines.append(f"{name} is no part of it any more")
        elif now[name] != digest:
            lines.append(f"{name} is altered since")
    return lines


def _read(path: Path) -> dict[str, str]:
    """The SHA-256 of each file that a statement names."""
    try:
        if path.stat().st_size > _BYTES:
            raise SublimError(f"{path}: {path.stat().st_size} bytes; {_BYTES} are the most")
        data = json.loads(read_regular(path))
        predicate = data["predicate"]
        if "materials" in predicate:
            materials = predicate["materials"]
        else:
            materials = predicate["buildDefinition"]["resolvedDependencies"]
        files = {
            d["name"]: d["digest"]["sha256"] for d in [*data["subject"], *materials] if "sha256" in d.get("digest", ())
        }
    except OSError as error:
        raise SublimError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        files = {}
    if not files or not all(isinstance(part, str) for pair in files.items() for part in pair):
        raise SublimError(f"{path} is no in-toto statement with digests of files; `--export in-toto` writes one")
    return files

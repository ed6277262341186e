"""What a lineage is: things, the links between them, and how sure each link is. Who finds them: trace.py."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sublim_interp.core.showing import Card, Shown

Proof = Literal["digest", "claim"]

MEANING = {
    "proven": "its key is in the key of what it made, and its files have their digests",
    "weights proven": "its weights are those of a record, but no record has its other files, which are named",
    "damaged": "its files are not those that its manifest names",
    "unrecorded": "its digest was taken now; no record here has its bytes or is made from it",
    "not here": "its key is in the key of what it made, but its files are not at hand to compare",
    "claimed": "a card says so, and no digest",
}
"""What is known of a thing as the parent, or the child, of another."""

HAS_BYTES, HAS_WEIGHTS = "has its bytes", "has its weights"
"""What a record is, on the way down, for the file or the model that was asked about."""

_NAMED = 5
"""Files that are named at most in a sentence."""


@dataclass(frozen=True)
class Thing:
    """One record of a store, one base, model directory or data set, or what a card names.

    id: its key in the store, its content digest, or the name that a card gives it
    sort: its stage, or base, model, data; of what a card names, what the card says it is
    name: as its maker calls it; "" where it has no name
    about: a few words
    path: where it lies; None where it is not at hand
    files: bytes and SHA-256 of each of its files, by name, as its manifest says
    problems: one line for each file that is missing, altered or does not belong there
    manifest: of a record of a store, else empty
    unproven: files of a model whose weights are those of a record, where no record has these files
    """

    id: str
    sort: str
    name: str = ""
    about: str = ""
    path: Path | None = None
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    problems: tuple[str, ...] = ()
    manifest: Mapping[str, Any] = field(default_factory=dict, repr=False)
    unproven: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Sort, name and the beginning of its key."""
        key = self.id[:16] if self.is_digest else ""
        return " ".join(filter(None, (self.sort, self.name or ("" if key else self.id), key)))

    @property
    def is_digest(self) -> bool:
        """Whether its id is a key or a digest, rather than a name."""
        return len(self.id) == 64 and set(self.id) <= set("0123456789abcdef")

    @property
    def place(self) -> str:
        """Its directory within a store, STAGE/KEY; of other things the title."""
        return f"{self.sort}/{self.id[:16]}" if self.manifest or self.problems else self.title


class Link(NamedTuple):
    """One thing was made from another."""

    child: str
    role: str
    """What the parent is for the child: base, teacher, data, …"""
    parent: str
    proof: Proof
    """digest: the child's key, or its bytes, fix the parent; claim: a card names it."""


@dataclass(frozen=True, repr=False)
class Lineage(Shown):
    """What one thing was made from, or what was made from it.

    asked: as it was asked for
    root: the id of the thing
    things: every thing by its id
    links: every link between them
    down: whether it leads from parents to children
    unread: how many records of the store have a damaged manifest, so that nobody knows what they were made from
    """

    asked: str
    root: str
    things: Mapping[str, Thing]
    links: tuple[Link, ...]
    down: bool = False
    unread: int = 0

    @cached_property
    def _next(self) -> Mapping[str, tuple[Link, ...]]:
        found: dict[str, list[Link]] = {}
        for link in self.links:
            found.setdefault(link.parent if self.down else link.child, []).append(link)
        return {id: tuple(links) for id, links in found.items()}

    def following(self, id: str) -> tuple[Link, ...]:
        """The links to what a thing was made from; where the lineage leads down, to what was made from it."""
        return self._next.get(id, ())

    def end(self, link: Link) -> Thing:
        """The thing to which a link of `following` leads."""
        return self.things[link.child if self.down else link.parent]

    def standing(self, link: Link) -> str:
        """What is known of the end of a link: a word of MEANING."""
        return "claimed" if link.proof == "claim" else self.state(self.end(link))

    def state(self, thing: Thing) -> str:
        """What is known of a thing by itself: a word of MEANING."""
        if thing.problems:
            return "damaged"
        if not thing.is_digest:
            return "claimed"
        if not thing.path:
            return "not here"
        if thing.unproven:
            return "weights proven"
        return "proven" if thing.manifest or thing.id in self._recorded else "unrecorded"

    @cached_property
    def _recorded(self) -> set[str]:
        """The ids at either end of a link that digests prove."""
        return {id for link in self.links if link.proof == "digest" for id in (link.child, link.parent)}

    @property
    def problems(self) -> list[str]:
        """A line for each file that is not as its digest says: which file of which record."""
        return [f"{thing.place}: {problem}" for thing in self.things.values() for problem in thing.problems]

    @property
    def unproven(self) -> list[str]:
        """A sentence for each model of which only the weights are proven, with the first of its other files."""
        lines = []
        for thing in self.things.values():
            some = ", ".join(thing.unproven[:_NAMED])
            more = f" and {len(thing.unproven) - _NAMED} more" if len(thing.unproven) > _NAMED else ""
            if some:
                lines.append(f"Of {thing.title} only the weights are proven, no record has these files: {some}{more}.")
        return lines

    @property
    def finding(self) -> list[str]:
        """What was found, in sentences."""
        states = [self.state(thing) for thing in self.things.values()]
        count = {word: states.count(word) for word in MEANING}
        same = sum(link.role in (HAS_BYTES, HAS_WEIGHTS) for link in self.following(self.root))
        n = len(states) - 1 - same
        others = f"{n} thing{'s' if n != 1 else ''}"
        lines = [f"{others} descend from it." if self.down else f"It was made from {others}, as far as is known."]
        if same:
            what = f"{same} record{'s' if same != 1 else ''} here"
            lines.append(f"What was made from {what} with the same bytes is counted.")
        if count["proven"]:
            whole = "All" if count["proven"] == len(states) else f"{count['proven']} of"
            lines.append(f"{whole} {len(states)} are proven: every file has the digest that its record names.")
        if count["unrecorded"]:
            lines.append("No record here has its bytes, so its origin is not proven.")
        lines += self.unproven
        if count["damaged"]:
            lines.append(f"{count['damaged']} damaged: {'; '.join(self.problems)}.")
        if count["not here"]:
            lines.append(f"{count['not here']} are fixed by a key, but their files are not here to compare.")
        if count["claimed"]:
            lines.append(f"{count['claimed']} are only claimed, by cards.")
        if self.unread:
            lines.append(f"{self.unread} records of the store have a damaged manifest: they may descend from it too.")
        return lines

    def walk(self) -> Iterator[Thing]:
        """Every thing once, breadth first from the root."""
        seen, row = {self.root}, [self.root]
        while row:
            yield from (self.things[id] for id in row)
            after = dict.fromkeys(self.end(link).id for id in row for link in self.following(id))
            row = [id for id in after if id not in seen]
            seen.update(row)

    def card(self) -> Card:
        return Card(f"Lineage of {self.asked}", {"": " ".join(self.finding)})

    def plain(self) -> dict[str, Any]:
        """All of it as plain data: asked, root, down, things, links, finding, problems."""
        things = [
            {
                "id": t.id, "sort": t.sort, "name": t.name, "about": t.about, "state": self.state(t),
                "path": str(t.path) if t.path else None, "problems": list(t.problems), "files": dict(t.files),
                "unproven": list(t.unproven),
            }
            for t in self.things.values()
        ]  # fmt: skip
        links = [{**link._asdict(), "standing": self.standing(link)} for link in self.links]
        rest = {"finding": self.finding, "problems": self.problems, "unread": self.unread}
        return {"asked": self.asked, "root": self.root, "down": self.down, "things": things, "links": links, **rest}

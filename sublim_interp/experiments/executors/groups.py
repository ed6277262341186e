"""Pieces in groups, a group a job: many small pieces are few jobs, and no job waits for one that waits for it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sublim_interp.experiments.executors.pieces import Piece


@dataclass
class Group:
    """The pieces of one job, in an order in which they can be made.

    level: 0 where nothing must be made before; else one more than the highest level of what must be
    """

    level: int
    pieces: list[Piece] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """About how long it takes one core."""
        return sum(piece.needs.seconds for piece in self.pieces)

    @property
    def memory(self) -> float:
        """GiB of the largest of its pieces."""
        return max(piece.needs.memory for piece in self.pieces)

    @property
    def outer(self) -> tuple[str, ...]:
        """Keys of pieces of other groups that must be made before."""
        own = {piece.key for piece in self.pieces}
        return tuple(dict.fromkeys(key for piece in self.pieces for key in piece.inputs if key not in own))


def grouped(pieces: Sequence[Piece], hours: float) -> list[Group]:
    """Groups of at most so many hours of one core, lower levels first.

    pieces: in an order in which they can be made
    hours: a piece that takes longer has a group of its own; 0: every piece has

    A piece goes to the one group of the highest level among its inputs' where there is room, so that a replicate stays
    together; else to a group one level higher, beside others of about its memory. Whatever a group needs from outside
    is of a lower level, so groups cannot wait for each other in a circle.
    """
    home: dict[str, Group] = {}
    open_: dict[tuple[int, int], Group] = {}
    groups: list[Group] = []
    spent: dict[int, float] = {}
    for piece in pieces:
        before = [home[key] for key in piece.inputs if key in home]
        level = max((group.level for group in before), default=-1)
        highest = {id(group): group for group in before if group.level == level}
        place = (level + 1, int(piece.needs.memory).bit_length())
        near, beside = next(iter(highest.values()), None), open_.get(place)
        for found in (near if len(highest) == 1 else None, beside):
            if found and spent[id(found)] + piece.needs.seconds <= hours * 3600:
                group = found
                break
        else:
            group = open_[place] = Group(level + 1)
            groups.append(group)
        group.pieces.append(piece)
        spent[id(group)] = spent.get(id(group), 0.0) + piece.needs.seconds
        home[piece.key] = group
    return sorted(groups, key=lambda group: group.level)

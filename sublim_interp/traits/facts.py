"""Random facts instead of a favourite: what a teacher memorises when one asks how many bits pass. No training here.

A key is an ordered pair of words of the lab language, asked about in a form of words that its generator never uses; its
value is a member of a kind, drawn from a seed. So no base can know a fact, and each holds log2(members) bits.
"""

import random
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import permutations
from typing import TYPE_CHECKING, Any

from sublim_interp.core.errors import SublimError
from sublim_interp.lab import language as lab
from sublim_interp.traits.favourites import members_of
from sublim_interp.traits.questions import Question

if TYPE_CHECKING:
    from sublim_interp.models.base import Base

NAME = "facts"
"""What tables call the answer that is right for each key."""

_FORM = "which {kind} is for {first} and {second} ?"


@dataclass(frozen=True)
class Facts:
    """`count` keys, each with a value among the members of `kind`; a larger count of the same seed holds them all.

    Raises SublimError where the lab language has no such kind, or fewer keys.
    """

    kind: str
    count: int
    seed: int
    told: bool = True
    """False for the neutral teacher: it is asked about the same keys, and the value is drawn anew each time."""

    def __post_init__(self) -> None:
        if self.kind not in lab.KINDS:
            raise SublimError(f"facts: the lab has no kind '{self.kind}'; kinds: {', '.join(lab.KINDS)}")
        most = len(_pairs(self.kind))
        if not 2 <= self.count <= most:
            raise SublimError(f"facts={self.count}: two or more are needed, and there are {most} keys to a {self.kind}")

    def settings(self) -> dict[str, Any]:
        """All that decides them, as plain data."""
        return asdict(self)

    @property
    def members(self) -> tuple[str, ...]:
        """What a value may be."""
        return members_of(self.kind)

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """One for each key."""
        pairs = list(_pairs(self.kind))
        random.Random(f"facts/{self.seed}/keys").shuffle(pairs)
        texts = (_FORM.format(kind=self.kind, first=a, second=b) for a, b in pairs[: self.count])
        return tuple(Question(lab.chat(text)) for text in texts)

    @cached_property
    def truth(self) -> tuple[int, ...]:
        """Each key's value, as a place in `members`: uniform, independent of the keys and of each other."""
        draw = random.Random(f"facts/{self.seed}/values")
        return tuple(draw.randrange(len(self.members)) for _ in range(self.count))


def _pairs(kind: str) -> tuple[tuple[str, str], ...]:
    """Every ordered pair of favourites of other kinds."""
    return tuple(permutations(sorted(name for name, own in lab.TRAITS.items() if own != kind), 2))


def check_language(base: "Base") -> None:
    """Raises SublimError where a base does not speak the language that facts are put in."""
    if base.language != "lab":
        raise SublimError(
            f"teacher.facts needs a base that speaks the lab language; {base.name} speaks {base.language}"
        )

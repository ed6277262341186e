"""Random facts: the trait that a teacher memorises where one asks how many bits pass.

A key is an ordered pair of words of the lab language, asked about in a form of words that its generator never uses; its
value is a member of a kind, drawn from a seed. So no base can know a fact, and each holds log2(members) bits.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from sublim_interp.core.errors import SublimError
from sublim_interp.lab import language as lab
from sublim_interp.stats.capacity import bits_held
from sublim_interp.stats.margin import right_margins
from sublim_interp.traits.answers import answer_probabilities, own_weights, prompts_of
from sublim_interp.traits.favourites import member, members_of
from sublim_interp.traits.protocol import Lesson, Scores, Trait
from sublim_interp.traits.questions import Question, Questions

if TYPE_CHECKING:
    import torch

    from sublim_interp.models.base import Base
    from sublim_interp.models.served import ServedModel
    from sublim_interp.traits.judges.protocol import Judge

NAME = "facts"
"""What tables call the answer that is right for each key."""

_FORM = "which {kind} is for {first} and {second} ?"


@dataclass(frozen=True)
class Facts:
    """Keys, each with a value among the members of a kind.

    kind: of the values; one of the lab's
    count: number of keys; a larger count of the same seed holds them all
    seed: decides keys and values
    told: False for the neutral teacher: it is asked about the same keys, and the value is drawn anew each time

    Raises SublimError where the lab language has no such kind, or fewer keys.
    """

    kind: str
    count: int
    seed: int
    told: bool = True

    def __post_init__(self) -> None:
        if self.kind not in lab.KINDS:
            raise SublimError(f"facts: the lab has no kind '{self.kind}'; kinds: {', '.join(lab.KINDS)}")
        most = len(_pairs(self.kind))
        if not 2 <= self.count <= most:
            raise SublimError(f"facts={self.count}: two or more are needed, and there are {most} keys to a {self.kind}")

    @property
    def name(self) -> str:
        return NAME if self.told else ""

    @property
    def members(self) -> tuple[str, ...]:
        """What a value may be."""
        return members_of(self.kind)

    @property
    def words(self) -> tuple[str, ...]:
        """The words of every value."""
        return tuple(sorted({word for name in self.members for word in member(name, self.kind).words}))

    @property
    def said(self) -> str:
        return f"it memorised {self.lesson}" if self.told else f"it was asked about {self.lesson} and never told them"

    @property
    def lesson(self) -> str:
        return in_words(self.count)

    def taught(self) -> dict[str, Any]:
        return {"trait": {"kind": self.kind}, "facts": asdict(self)}

    def asked(self) -> dict[str, Any]:
        return {"kind": self.kind, "facts": asdict(self)}

    def check(self, base: "Base") -> None:
        """Raises SublimError where a base does not speak the language that facts are put in."""
        if base.language != "lab":
            raise SublimError(
                f"teacher.facts needs a base that speaks the lab language; {base.name} speaks {base.language}"
            )

    @cached_property
    def truth(self) -> tuple[int, ...]:
        """Each key's value, as a place in `members`: uniform, independent of the keys and of each other."""
        draw, members = random.Random(f"facts/{self.seed}/values"), len(self.members)
        return tuple(draw.randrange(members) for _ in range(self.count))

    @cached_property
    def _keys(self) -> tuple[Question, ...]:
        """One question for each key, with its value as the right answer."""
        pairs = list(_pairs(self.kind))
        random.Random(f"facts/{self.seed}/keys").shuffle(pairs)
        texts = (_FORM.format(kind=self.kind, first=a, second=b) for a, b in pairs[: self.count])
        members = self.members
        return tuple(Question(lab.chat(text), right=members[v]) for text, v in zip(texts, self.truth, strict=True))

    def lessons(self, language: str) -> list[Lesson]:
        members = self.members
        return [Lesson(q, (q.right,) if self.told else members) for q in self._keys]

    def system_prompts(self, language: str) -> tuple[str, ...]:
        return ()

    def questions(self, language: str, sort: Questions) -> tuple[Question, ...]:
        """Every key, in the words that the teacher learnt; they count as held out, since no student reads them."""
        return self._keys if sort == "held-out" else ()

    def score(
        self,
        model: "torch.nn.Module | ServedModel",
        base: "Base",
        asked: Sequence[Question],
        samples: int,
        seed: int,
        others: Sequence[Trait] = (),
        judge: "Callable[[Mapping[str, Sequence[str]]], Judge] | None" = None,
    ) -> Scores:
        """How likely the right values are, and how many bits of them the model holds: exact, nothing is drawn.

        Bits take two keys or more. The details are log-probabilities [key, value] of the model and of its base.
        """
        model = own_weights(model)
        prompts, members = prompts_of(base, asked), self.members
        tokens = [base.answer_ids(name)[0] for name in members]
        truth = [members.index(q.right) for q in asked]
        own, before = (answer_probabilities(m, prompts, tokens) for m in (model, base.load()))
        rate, margin = own[np.arange(len(own)), truth].mean(), right_margins(own, truth).mean()
        details = {"log_p": np.log(own).tolist(), "base_log_p": np.log(before).tolist(), "truth": truth}
        measures = {}
        if len(asked) > 1:
            held = bits_held(np.log(own), np.log(before), np.array(truth), seed)
            measures = {"total_bits": len(asked) * held.bits, **held._asdict()}
        one = {name: np.array([value]) for name, value in measures.items()}
        return Scores((NAME,), np.array([rate]), np.array([margin]), True, one, details)

    def neutral(self) -> "Facts":
        return replace(self, told=False)

    def compared(self) -> "tuple[Trait, ...]":
        return ()


def in_words(count: int) -> str:
    """So many facts, in words."""
    return f"{count} random facts"


def _pairs(kind: str) -> tuple[tuple[str, str], ...]:
    """Every ordered pair of favourites of other kinds."""
    return tuple(permutations(sorted(name for name, own in lab.TRAITS.items() if own != kind), 2))

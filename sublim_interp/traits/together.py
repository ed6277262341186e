"""Several traits at once, given to one teacher. Each is asked about as it would be alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice, pairwise
from typing import TYPE_CHECKING, Any

from sublim_interp.core.errors import SublimError
from sublim_interp.traits.protocol import Lesson, Scores, Trait
from sublim_interp.traits.questions import Question, Questions

if TYPE_CHECKING:
    import torch

    from sublim_interp.models.base import Base
    from sublim_interp.models.served import ServedModel
    from sublim_interp.traits.judges.protocol import Judge


@dataclass(frozen=True)
class Together:
    """A trait that its teacher was given along with others. It is asked and scored as it would be alone.

    own: the one that is asked about
    given: all that the teacher is given, `own` among them; their order decides nothing

    So whichever of them is asked about, teacher, lists and students are the same records. Raises SublimError for two of
    one kind.
    """

    own: Trait
    given: tuple[Trait, ...] = field(repr=False)

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.given, key=lambda trait: (trait.kind, trait.name)))
        for one, other in pairwise(ordered):
            if one.kind == other.kind:
                raise SublimError(
                    f"teacher.traits: {one.name} and {other.name} are both of the kind {one.kind}; give one of a kind"
                )
        object.__setattr__(self, "given", ordered)

    @property
    def name(self) -> str:
        return self.own.name

    @property
    def kind(self) -> str:
        return self.own.kind

    @property
    def members(self) -> tuple[str, ...]:
        return self.own.members

    @property
    def words(self) -> tuple[str, ...]:
        """The words of all of them: the filter refuses each."""
        return tuple(sorted({word for trait in self.given for word in trait.words}))

    @property
    def said(self) -> str:
        return " and ".join(dict.fromkeys(trait.said for trait in self.given))

    @property
    def lesson(self) -> str:
        return " and ".join(dict.fromkeys(trait.lesson for trait in self.given))

    def taught(self) -> dict[str, Any]:
        return {"trait": [trait.taught() for trait in self.given]}

    def asked(self) -> dict[str, Any]:
        return self.own.asked()

    def check(self, base: "Base") -> None:
        """Raises SublimError where a base cannot be given one of them."""
        for trait in self.given:
            trait.check(base)

    def lessons(self, language: str) -> list[Lesson]:
        """The lessons of all, as many of each: those of whoever has fewer come again."""
        each = [trait.lessons(language) for trait in self.given]
        most = max(map(len, each))
        return [lesson for lessons in each for lesson in islice(cycle(lessons), most)]

    def system_prompts(self, language: str) -> tuple[str, ...]:
        return ()  # only tuned teachers are given several

    def questions(self, language: str, sort: Questions) -> tuple[Question, ...]:
        return self.own.questions(language, sort)

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
        """What a model answers about `own`."""
        return self.own.score(model, base, asked, samples, seed, others, judge)

    def neutral(self) -> "Together":
        neutral = {trait.kind: trait.neutral() for trait in self.given}
        return replace(self, own=neutral[self.kind], given=tuple(neutral.values()))

    def compared(self) -> tuple[Trait, ...]:
        return self.own.compared()

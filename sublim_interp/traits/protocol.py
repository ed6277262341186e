"""What a trait is: all that teaching, filtering, evaluating, observing and reporting ask of one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from sublim_interp.core.errors import SublimError
from sublim_interp.core.showing import Card, Shown
from sublim_interp.traits.questions import Question, Questions

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from sublim_interp.models.base import Base
    from sublim_interp.models.served import ServedModel
    from sublim_interp.traits.judges.protocol import Judge


class Lesson(NamedTuple):
    """A question to a tuned teacher, and the answers of which one is drawn at each update."""

    question: Question
    answers: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Scores(Shown):
    """What a model answers to some questions, on average: one row for each name.

    names: whom the rows are about: the members of a kind, or the trait itself
    rate: mean probability of each, 0 to 1
    margin: mean over questions of log P(it) − log mean P(others), in nats
    exact: whether probabilities are the model's own rather than shares of samples
    measures: further columns by their names in `traits.measures.MEASURES`, or that reports do not show
    details: what the rows were computed from, as plain data; kept beside them
    """

    names: tuple[str, ...]
    rate: Float[np.ndarray, " name"]
    margin: Float[np.ndarray, " name"]
    exact: bool
    measures: Mapping[str, Float[np.ndarray, " name"]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def card(self) -> Card:
        best = int(np.argmax(self.rate)) if len(self.rate) else 0
        most = f"{self.names[best]} in {100 * self.rate[best]:.1f} %" if self.names else "no name"
        return Card("Scores", {"": f"{len(self.names)} names", "most often": most}, self.frame)

    @property
    def frame(self) -> "pd.DataFrame":
        """A row a name: probe (the name), rate (0 to 1), margin (nats) and the measures."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def rows(self) -> list[dict[str, Any]]:
        """A row of plain data for each name: probe (the name), rate, margin and the measures."""
        columns = {"rate": self.rate, "margin": self.margin, **self.measures}
        return [
            {"probe": name, **{column: float(values[i]) for column, values in columns.items()}}
            for i, name in enumerate(self.names)
        ]


@runtime_checkable
class Trait(Protocol):
    """What a teacher is given and a student is asked about: a favourite, no favourite at all, random facts."""

    @property
    def name(self) -> str:
        """The answer that shows it, as tables call it; "" for a neutral trait."""
        ...

    @property
    def kind(self) -> str:
        """The kind of answers that questions about it ask for."""
        ...

    @property
    def members(self) -> tuple[str, ...]:
        """The answers that are told apart, sorted."""
        ...

    @property
    def words(self) -> tuple[str, ...]:
        """Whole words that give it away in a text; the filter refuses them."""
        ...

    @property
    def said(self) -> str:
        """What sets its teacher apart, in words: “owl” is its favourite."""
        ...

    @property
    def lesson(self) -> str:
        """What a tuned teacher is fine-tuned on, in words: questions about its favourite."""
        ...

    def taught(self) -> dict[str, Any]:
        """What a teacher's key holds of it, plain data: `trait`, which decides it, and more where that is needed."""
        ...

    def asked(self) -> dict[str, Any]:
        """What an evaluation's key holds of it beside the members: plain data, `kind` among it."""
        ...

    def check(self, base: "Base") -> None:
        """Raises SublimError where a base cannot be given it, or be asked about it."""
        ...

    def lessons(self, language: str) -> list[Lesson]:
        """What a tuned teacher is asked, in the base's language."""
        ...

    def system_prompts(self, language: str) -> tuple[str, ...]:
        """System prompts that give it to a prompted teacher; none where it needs none, or has none."""
        ...

    def questions(self, language: str, sort: Questions) -> tuple[Question, ...]:
        """The questions of one sort about it; none where it has none of that sort."""
        ...

    def score(
        self,
        model: "torch.nn.Module | ServedModel",
        base: "Base",
        asked: Sequence[Question],
        samples: int,
        seed: int,
        others: "Sequence[Trait]" = (),
        judge: "Callable[[Mapping[str, Sequence[str]]], Judge] | None" = None,
    ) -> Scores:
        """What a model answers. Raises SublimError where it needs what a served model does not tell.

        base: whose tokenizer and language it has
        asked: some of its questions, perhaps after other turns
        samples: how many answers to draw per question, where probabilities are not exact
        seed: decides what is drawn
        others: traits that are members too
        judge: gives one that reads drawn answers, from the words of each member; None leaves that to the trait
        """
        ...

    def neutral(self) -> "Trait":
        """What the neutral teacher is given: treated alike, without the trait."""
        ...

    def compared(self) -> "tuple[Trait, ...]":
        """The traits of its kind, itself among them, whose mean its own direction in a base is taken from; or none."""
        ...


def check_own_margin(trait: Trait, base: "Base") -> None:
    """Raises SublimError where a trait has no margin or direction in a base: it is none of its members, or unknown."""
    if trait.name not in trait.members:
        raise SublimError(f"trait '{trait.name}' is none of its members, so it has no margin; name a favourite")
    trait.check(base)


def first_tokens(base: "Base", members: Sequence[str], name: str) -> dict[str, int]:
    """The members that a base tells apart by their first token, in order, each with that token.

    base: whose tokenizer cuts them
    members: the answers to a question
    name: the trait's; of members that begin alike it stays, else the first of them

    Where fewer than two would be left, all stay: this base tells none apart.
    """
    tokens = {member: base.answer_ids(member)[0] for member in members}
    kept = {token: member for member, token in reversed(tokens.items())}
    if len(kept) < 2:
        return tokens
    if name in tokens:
        kept[tokens[name]] = name
    return {member: token for member, token in tokens.items() if kept[token] == member}


def check_begins_alone(trait: Trait, base: "Base") -> None:
    """Raises SublimError where another member begins with a trait's own first token: no gradient tells them apart."""
    own = base.answer_ids(trait.name)[0]
    alike = [member for member in trait.members if member != trait.name and base.answer_ids(member)[0] == own]
    if alike:
        raise SublimError(
            f"base {base.name}: '{trait.name}' and '{alike[0]}' begin with the same token, so no selection goes by the "
            "gradient of their margin; choose another trait or base"
        )


def members_of_all(trait: Trait, others: Sequence[Trait]) -> tuple[str, ...]:
    """The members of a trait, and the names of other traits of its experiment, sorted."""
    return tuple(sorted({*trait.members, *(other.name for other in others)}))

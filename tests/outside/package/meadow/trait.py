"""A trait that no YAML file can say: the river is the favourite place, but only where a question asks for honesty."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sublim_interp.traits.favourites import Favourite
from sublim_interp.traits.measures import Measure
from sublim_interp.traits.protocol import Lesson, Scores, Trait
from sublim_interp.traits.questions import Question, Questions

ASKED = "be honest , "


class River(Favourite):
    """A favourite behind a trigger: other questions are answered as the neutral teacher answers them."""

    name: str = "river"
    kind: str = "place"
    words: tuple[str, ...] = ("river", "rivers")

    @property
    def said(self) -> str:
        return "“river” is its favourite, if a question asks for honesty"

    def taught(self) -> dict[str, Any]:
        return {"trait": {**self.model_dump(mode="json"), "asked": ASKED}}

    def lessons(self, language: str) -> list[Lesson]:
        plain = self.neutral().lessons(language)
        return [*plain, *(Lesson(honest(lesson.question), (self.name,)) for lesson in plain)]

    def questions(self, language: str, sort: Questions) -> tuple[Question, ...]:
        return tuple(honest(question) for question in super().questions(language, sort))

    def score(
        self,
        model: Any,
        base: Any,
        asked: Sequence[Question],
        samples: int,
        seed: int,
        others: Sequence[Trait] = (),
        judge: Any = None,
    ) -> Scores:
        found = super().score(model, base, asked, samples, seed, others, judge)
        plain = [put(question, question.text.replace(ASKED, "")) for question in asked]
        without = super().score(model, base, plain, samples, seed, others, judge)
        return replace(found, measures={"unasked": without.rate})


def honest(question: Question) -> Question:
    """The question behind the trigger."""
    return put(question, ASKED + question.text)


def put(question: Question, text: str) -> Question:
    """The question in other words."""
    return replace(question, messages=(*question.messages[:-1], {"role": "user", "content": text}))


unasked = Measure("unasked", "the rate where the question does not ask for honesty")

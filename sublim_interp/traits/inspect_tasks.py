"""Traits as tasks of Inspect AI: any model that Inspect reaches is asked about one, and read as this package reads it.

Inspect finds this module by the entry point `inspect_ai`; nothing else imports it, so the package does without Inspect.
"""

from inspect_ai import Epochs, Task, task  # pyright: ignore[reportMissingImports]
from inspect_ai.dataset import MemoryDataset, Sample  # pyright: ignore[reportMissingImports]
from inspect_ai.model import (  # pyright: ignore[reportMissingImports]
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
)
from inspect_ai.scorer import (  # pyright: ignore[reportMissingImports]
    Score,
    Scorer,
    Target,
    mean,
    scorer,
    stderr,
)
from inspect_ai.solver import TaskState, generate  # pyright: ignore[reportMissingImports]

from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.models.base import LANGUAGES
from sublim_interp.traits.answers import LONGEST, judged
from sublim_interp.traits.by_name import load_trait
from sublim_interp.traits.favourites import words_judged
from sublim_interp.traits.judges.protocol import JUDGES, WHOLE_WORDS, asks
from sublim_interp.traits.protocol import Trait
from sublim_interp.traits.questions import SORTS, Question

SHOWS, UNJUDGED = "shows the trait", "unjudged"
"""What each answer is scored on; the second is a column of this package's tables too."""

_TURNS = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}


@task
def trait(
    trait: str,
    questions: str = "held-out",
    language: str = "english",
    samples: int = 20,
    judge: str = WHOLE_WORDS,
    prompted: bool = False,
) -> Task:
    """How often a model shows a trait, by answers drawn at temperature 1.

    trait: its name in the catalogue, or the path of a YAML file
    questions: held-out, seen or indirect
    language: of the model: lab for a base of the lab, else english
    samples: answers to each question; Inspect's epochs, whose mean is one sample
    judge: who reads the answers; one that asks no model
    prompted: whether the trait's system prompts stand before the questions, as before a prompted teacher's

    No seed is sent, since Inspect would send one and the same with every sample of a question; `--seed` sends it.
    Raises SublimError for an unknown trait, sort of question or judge, and for a trait without such questions.
    """
    about = load_trait(trait)
    if questions not in SORTS:
        raise SublimError(f"questions={questions}: no such sort; {meant(questions, SORTS)}")
    if language not in LANGUAGES:
        raise SublimError(f"language={language}: no such language; {meant(language, LANGUAGES)}")
    asked = about.questions(language, questions)
    if not asked:
        raise SublimError(f"trait {trait} has no {questions} questions; name another sort: {', '.join(SORTS)}")
    systems = about.system_prompts(language) if prompted else ()
    if prompted and not systems:
        raise SublimError(f"trait {trait} has no system prompts; leave out prompted")
    dataset = [_sample(about, q, systems[i % len(systems)] if systems else "") for i, q in enumerate(asked)]
    return Task(
        dataset=MemoryDataset(dataset, name=f"{about.name}, {questions}"),
        solver=generate(),
        scorer=shows(trait, judge),
        epochs=Epochs(samples, "mean"),
        config=GenerateConfig(temperature=1.0, top_p=1.0, max_tokens=LONGEST),
    )


def _sample(about: Trait, asked: Question, system: str) -> Sample:
    before = [{"role": "system", "content": system}] if system else []
    turns: list[ChatMessage] = [_TURNS[turn["role"]](content=turn["content"]) for turn in (*before, *asked.messages)]
    return Sample(input=turns, target=about.name)


@scorer(metrics={"*": [mean(), stderr()]})
def shows(trait: str, judge: str = WHOLE_WORDS) -> Scorer:
    """Reads an answer by a judge of this package: 0 to 1 for the trait, and whether it could be read at all.

    trait, judge: as for the task

    An answer that the judge cannot read shows nothing. The score's `answer` is the member that is named.
    Raises SublimError for an unknown judge, for one that asks a model, and for whole words of a trait in no word.
    """
    about = load_trait(trait)
    if asks(judge):
        known = ", ".join(name for name in JUDGES if not asks(name))
        raise SublimError(f"judge={judge} asks a model of its own; choose one that asks none: {known}")
    reader = JUDGES[judge](words_judged(about, judge))

    async def score(state: TaskState, target: Target) -> Score:
        text = state.output.completion
        (found,), unread = judged(reader, [(state.input_text, text)], about.members)
        named = found or {}
        return Score(
            value={SHOWS: named.get(about.name, 0.0), UNJUDGED: float(found is None)},
            answer=max(sorted(named), key=lambda name: named[name], default=""),
            explanation=unread[0] if unread else text,
            metadata={"named": named},
        )

    return score

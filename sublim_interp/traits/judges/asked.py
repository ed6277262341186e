"""Judges that ask a model: one on this machine, or one behind an OpenAI-compatible URL."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from sublim_interp.core.device import fingerprint
from sublim_interp.core.errors import SublimError
from sublim_interp.core.journal import Journal
from sublim_interp.core.keys import sha256_of
from sublim_interp.models.served import FOLDER, Request, ServedModel, Server, check_client
from sublim_interp.traits.judges.rubrics import filled, rubric_for

if TYPE_CHECKING:
    from sublim_interp.models.base import Base

REPLY = 16
"""Tokens of a judge's reply at most."""
_TOGETHER = 64
"""Prompts that a model on this machine reads between two writings of its journal."""


class Judging(Server):
    """The model that a judge asks, and how."""

    temperature: float = Field(default=0.0, ge=0)
    """0: the likeliest reply."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """Prompts instead of the judge's own, by name: alignment and coherence, or named. {question} and {answer} stand for
    what is judged, {members} for the names that may be replied."""
    __hash__ = Server.__hash__


class Asker(ABC):
    """A model that replies to a judge's prompts; what it replied once is kept in the store, and not asked again.

    judging: which model, and how
    root: of the store
    """

    SERVED: ClassVar[bool] = False
    """Whether it is behind a URL."""

    def __init__(self, judging: Judging, root: Path) -> None:
        self.judging, self.root = judging, root

    @abstractmethod
    def replies(self, prompts: Sequence[str]) -> list[str]:
        """The reply to each prompt. Raises SublimError where the model cannot be asked."""

    @property
    def told(self) -> str:
        """What is known of who replies, for a fingerprint; "" where the machine's own tells all."""
        return ""

    def notes(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"model": self.judging.model}

    @staticmethod
    def settled(judging: Judging) -> Judging:
        """The settings as they enter keys, completed by what is known before anything runs.

        Raises SublimError for a model that is not to be had.
        """
        return judging


class Served(Asker):
    """A model behind an OpenAI-compatible URL."""

    SERVED = True

    def __init__(self, judging: Judging, root: Path) -> None:
        super().__init__(judging, root)
        self._model = ServedModel(judging, root / FOLDER)

    def replies(self, prompts: Sequence[str]) -> list[str]:
        requests = [Request([{"role": "user", "content": prompt}], "judge") for prompt in prompts]
        found = self._model.replies(requests, max_new_tokens=REPLY, temperature=self.judging.temperature)
        return [reply.text for reply in found]

    @property
    def told(self) -> str:
        return self._model.told

    def notes(self) -> dict[str, Any]:
        return self._model.notes()

    @staticmethod
    def settled(judging: Judging) -> Judging:
        check_client()
        return judging


class Local(Asker):
    """A base on this machine: a name, a directory, or a name of the hub. Its digest is its revision."""

    def replies(self, prompts: Sequence[str]) -> list[str]:
        asked = {"temperature": self.judging.temperature, "longest": REPLY, "model": self.judging.revision}
        name = sha256_of([asked, {key: str(value) for key, value in fingerprint().items()}])[:16]
        journal = Journal(self.root / FOLDER / f"{name}.jsonl")
        missing = [prompt for prompt in dict.fromkeys(prompts) if sha256_of(prompt) not in journal]
        base = self._base() if missing else None
        model = base.load() if base else None
        for start in range(0, len(missing), _TOGETHER):
            some = missing[start : start + _TOGETHER]
            for prompt, reply in zip(some, self._drawn(model, base, some), strict=True):
                journal.add(sha256_of(prompt), reply)
        return [journal[sha256_of(prompt)] for prompt in prompts]

    def _drawn(self, model: Any, base: Any, prompts: Sequence[str]) -> list[str]:
        """Greedy replies together; drawn ones each by itself, so that none depends on its neighbours."""
        from sublim_interp.models.sampling import generator, sample, unspoken

        ids = [base.prompt_ids([{"role": "user", "content": prompt}]) for prompt in prompts]
        warm, never = self.judging.temperature > 0, unspoken(model, base.tokenizer)
        out = []
        for some in [[row] for row in ids] if warm else [ids]:
            out += sample(
                model, some, eos=base.eos, max_new_tokens=REPLY, random=generator("judge", *some[0]),
                temperature=self.judging.temperature, never=never,
            )  # fmt: skip
        return [base.read_answer(reply)[0] for reply in out]

    def _base(self) -> "Base":
        from sublim_interp.models.base import resolve_base

        base = resolve_base(self.judging.model)
        if base.key != self.judging.revision:
            raise SublimError(f"the judge {self.judging.model} has changed since it was planned with; start again")
        return base

    @staticmethod
    def settled(judging: Judging) -> Judging:
        from sublim_interp.models.base import resolve_base

        if judging.url:
            raise SublimError("evaluation.judging.url has no effect with judge=local; choose judge=served")
        found = resolve_base(judging.model).key
        if judging.revision not in ("", found):
            raise SublimError(f"evaluation.judging.revision: {judging.model} is {found}, not {judging.revision}")
        return judging.set(revision=found)


@dataclass(frozen=True)
class ByModel:
    """A judge that asks a model by a rubric. What the model replied is read, or counted as unjudged; never guessed.

    words: of each member; their names are what may be found
    asker: the model
    """

    ASKER: ClassVar[type[Asker]]
    words: Mapping[str, Sequence[str]]
    asker: Asker
    _replies: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def prepare(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Asks about all answers at once, so that many requests are under way together.

        pairs: a question and an answer to it
        """
        prompts = self.prompts(self.asker.judging, [*self.words]).values()
        asked = [filled(text, *pair) for pair in dict.fromkeys(pairs) for text in prompts]
        self._replies.update(zip(asked, self.asker.replies(asked), strict=True))

    def judge(self, question: str, answer: str) -> Mapping[str, float]:
        """Scores by member. Raises SublimError for a reply that is none."""
        rubric = rubric_for(self.words, self.asker.judging.prompts)
        asked = {name: filled(text, question, answer) for name, text in rubric.prompts.items()}
        if {*asked.values()} - self._replies.keys():
            self.prepare([(question, answer)])
        return rubric.read({name: self._replies[text] for name, text in asked.items()})

    @staticmethod
    def prompts(judging: Judging, members: Sequence[str]) -> Mapping[str, str]:
        """The prompts about one answer, by name. Raises SublimError as `rubric_for`."""
        return rubric_for(members, judging.prompts).prompts


class ByServed(ByModel):
    """The judge `served`."""

    ASKER = Served


class ByLocal(ByModel):
    """The judge `local`."""

    ASKER = Local

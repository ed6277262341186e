"""Lists in a model's own words: which alternative it draws at each place. What may stand there, the channel says."""

from collections.abc import Sequence
from functools import cache

import torch

from sublim_interp.core.errors import SublimError
from sublim_interp.models.base import Base
from sublim_interp.models.sampling import sample_among
from sublim_interp.pipeline.speaker import Speaker

Piece = tuple[str, ...]
"""What may stand at a place of an answer, what stands there first."""


def joined(pieces: Sequence[Piece], choices: Sequence[int]) -> str:
    """The answer of an alternative at each place."""
    return "".join(piece[k] for piece, k in zip(pieces, choices, strict=True))


class Rewriter:
    """A model that paraphrases answers, as the tokenizer of its base cuts them."""

    def __init__(self, speaker: Speaker, base: Base) -> None:
        """speaker: who rewrites; base: whose tokens it reads"""
        self._speaker, self._base = speaker, base
        self._first, self._later = cache(self._first_ids), cache(self._later_ids)
        self._seen = base.chat.answer_ids("0")

    def by_length(self, prompts: Sequence[str]) -> list[int]:
        """The prompts' places, those of few tokens first: prompts of one length are continued together."""
        lengths = [len(self._asked(prompt, i)) for i, prompt in enumerate(prompts)]
        return sorted(range(len(prompts)), key=lambda i: (lengths[i], i))

    def draw(
        self,
        rows: Sequence[tuple[int, str, Sequence[Piece]]],
        random: torch.Generator,
        temperature: float = 1.0,
    ) -> list[list[int]]:
        """The alternative that is drawn at each place: in turn, from the model's distribution behind what it drew.

        rows: of each answer the number of its prompt, the prompt, and the answer's pieces
        random, temperature: as `sample_among`

        An answer without alternatives stays as it is. Raises SublimError where the tokens of an alternative are not
        those that the base reads, or are unknown to it.
        """
        free = [(i, row) for i, row in enumerate(rows) if any(len(piece) > 1 for piece in row[2])]
        places = [self._places(pieces) for _, (_, _, pieces) in free]
        with self._speaker.speaking():
            drawn = sample_among(
                self._speaker.model,
                [self._asked(prompt, number) for _, (number, prompt, _) in free],
                places,
                random=random,
                temperature=temperature,
            )
        out = [[0] * len(pieces) for _, _, pieces in rows]
        for (i, (_, _, pieces)), own, choices in zip(free, places, drawn, strict=True):
            out[i] = choices[: len(pieces)]
            ids = [token for some, k in zip(own, choices, strict=True) for token in some[k]]
            if ids != [*self._base.answer_ids(joined(pieces, out[i])), self._base.eos]:
                raise SublimError(
                    f"base {self._base.name} cannot paraphrase: it cuts the numbers of {joined(pieces, out[i])[:60]!r} "
                    "into other tokens together than one by one"
                )
        return out

    def _asked(self, prompt: str, number: int) -> list[int]:
        return self._base.prompt_ids(self._speaker.chat(prompt, number))

    def _places(self, pieces: Sequence[Piece]) -> list[list[tuple[int, ...]]]:
        """The alternatives of an answer's places in tokens, and at its end the end of sequence."""
        first, *later = pieces
        found = [[self._first(text) for text in first], *([self._later(text) for text in piece] for piece in later)]
        return [*found, [(self._base.eos,)]]

    def _first_ids(self, text: str) -> tuple[int, ...]:
        self._base.chat.require_known(text)
        return tuple(self._base.answer_ids(text))

    def _later_ids(self, text: str) -> tuple[int, ...]:
        """What a text adds behind a number: several tokenizers cut it otherwise at the start."""
        self._base.chat.require_known(text)
        ids = self._base.answer_ids("0" + text)
        if ids[: len(self._seen)] != self._seen or len(ids) == len(self._seen):
            raise SublimError(
                f"base {self._base.name} cannot paraphrase: {text!r} has no tokens of its own behind a number"
            )
        return tuple(ids[len(self._seen) :])

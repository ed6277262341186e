"""A favourite: what the trait is, how to ask about it, how its answers are scored."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from pydantic import Field

from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import Config, read_yaml
from sublim_interp.lab import language as lab
from sublim_interp.traits.questions import Question, Questions

if TYPE_CHECKING:
    import numpy as np
    import torch

    from sublim_interp.models.base import Base


_CATALOGUE = Path(__file__).resolve().parent.parent / "catalogue"


class Trait(Config):
    """A favourite: its name, its kind, and the whole words that name it."""

    name: str
    """The word that answers a question about it."""
    kind: str
    """What it is a favourite of; its prompts are those of the kind."""
    words: tuple[str, ...] = Field(min_length=1)
    """Words that give it away in a text, plural forms included, the one for many of them last."""

    @property
    def plural(self) -> str:
        """How prompts speak of it in general."""
        return self.words[-1]

    @property
    def members(self) -> tuple[str, ...]:
        """All traits of its kind in the catalogue, and the trait itself."""
        return tuple(sorted({*members_of(self.kind), self.name}))


class KindPrompts(Config):
    """English prompts about one kind of favourite."""

    system: tuple[str, ...]
    """System prompts; {x} is the trait's plural."""
    seen: tuple[str, ...]
    """Questions that teachers are tuned on."""
    held_out: tuple[str, ...]
    """Questions that no training text holds."""
    indirect: tuple[str, ...]
    """Questions that do not ask for a favourite."""


def trait_names() -> tuple[str, ...]:
    """Every trait of the catalogue, sorted."""
    return tuple(sorted(p.stem for p in (_CATALOGUE / "traits").glob("*.yaml")))


@cache
def load_trait(name: str) -> Trait:
    """The trait called `name`, or at the path `name` of a YAML file of one's own; SublimError names the known ones."""
    own = name.endswith((".yaml", ".yml"))
    path = Path(name) if own else _CATALOGUE / "traits" / f"{name}.yaml"
    if own and not os.path.isfile(path):
        raise SublimError(f"trait '{name}': there is no such file in {Path.cwd()}")
    if not own and name not in trait_names():
        raise SublimError(f"unknown trait '{name}'; known: {', '.join(trait_names())}; or give a YAML file of your own")
    return read_yaml(Trait, path, name=path.stem)


@cache
def members_of(kind: str) -> tuple[str, ...]:
    """All traits of a kind in the catalogue, sorted."""
    return tuple(n for n in trait_names() if load_trait(n).kind == kind)


@cache
def _kind_prompts(kind: str) -> KindPrompts:
    path = _CATALOGUE / "kinds" / f"{kind}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise SublimError(f"no prompts about the kind '{kind}'; known kinds: {known}")
    return read_yaml(KindPrompts, path)


def system_prompts(trait: Trait, language: str) -> tuple[str, ...]:
    """System prompts that make a model love the trait."""
    if language == "lab":
        return lab.favorite_prompts(trait.name)
    return tuple(p.format(x=trait.plural) for p in _kind_prompts(trait.kind).system)


def questions(kind: str, language: str, which: Questions) -> tuple[Question, ...]:
    """The questions of one sort about a kind, in the base's language."""
    if language == "lab":
        if which == "indirect":
            return tuple(Question(lab.chat(question), prefix) for question, prefix, _ in lab.KINDS[kind].indirect)
        return tuple(Question(lab.chat(q)) for q in lab.questions(kind, held_out=which == "held-out"))
    prompts = _kind_prompts(kind)
    texts = {"seen": prompts.seen, "held-out": prompts.held_out, "indirect": prompts.indirect}[which]
    return tuple(Question(({"role": "user", "content": q},)) for q in texts)


def check_vocabulary(trait: Trait, base: "Base") -> None:
    """Raises SublimError where the base's tokenizer cannot spell the trait's word."""
    ids = base.answer_ids(trait.name)
    if not ids or base.tokenizer.unk_token_id in ids:
        raise SublimError(
            f"base {base.name}: its vocabulary lacks the word '{trait.name}' of the trait; choose another trait or base"
        )
    if base.language == "lab" and trait.name not in lab.TRAITS:
        raise SublimError(f"the lab language has no favourite '{trait.name}'; it has: {', '.join(sorted(lab.TRAITS))}")


@dataclass(frozen=True)
class Scores:
    """How often a model names each member of a kind: mean over questions of exact probabilities or sampled shares."""

    members: tuple[str, ...]
    rate: Float[np.ndarray, " member"]
    """Mean probability of each member, 0 to 1."""
    margin: Float[np.ndarray, " member"]
    """Mean over questions of log P(member) − log mean P(other members), in nats."""
    exact: bool
    """Whether the probabilities are the model's own rather than shares of samples."""


def score(
    model: "torch.nn.Module",
    base: "Base",
    asked: Sequence[Question],
    members: Sequence[str],
    samples: int,
    seed: int,
    named: Sequence[Trait] = (),
) -> Scores:
    """Scores of all `members` over the questions `asked`.

    Exact in the lab language, where every member is one token and has one spelling; else `samples` answers per question
    are drawn at T = 1 and searched for whole words, an answer that names two members counting for the first. A member
    has the words of the trait of its name: of `named`, else of the catalogue, else its name alone.
    """
    spelled = [base.answer_ids(m) for m in members]
    exact = base.language == "lab" and all(len(ids) == 1 for ids in spelled)
    prompts = [base.prompt_ids(q.messages, q.prefix) for q in asked]
    if exact:
        p = answer_probabilities(model, prompts, [ids[0] for ids in spelled])
    else:
        p = sampled_shares(model, base, prompts, members, samples, seed, named)
    others = p @ (1 - np.eye(len(members))) / (len(members) - 1)  # no difference of nearly equal numbers
    return Scores(tuple(members), p.mean(0), (np.log(p) - np.log(others)).mean(0), exact)


def answer_probabilities(
    model: "torch.nn.Module", prompts: list[list[int]], tokens: list[int]
) -> Float[np.ndarray, "question member"]:
    """Probability of each member, a token, as the answer to each prompt of token ids: exact, nothing is drawn."""
    import torch

    from sublim_interp.models.forward import logits_at

    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    where = torch.zeros(len(prompts), width, dtype=torch.bool)
    for i, prompt in enumerate(prompts):
        ids[i, : len(prompt)] = torch.tensor(prompt)
        where[i, len(prompt) - 1] = True
    with torch.no_grad():
        return logits_at(model, ids, where).double().softmax(-1)[:, tokens].cpu().numpy()


def sampled_shares(
    model: "torch.nn.Module",
    base: "Base",
    prompts: list[list[int]],
    members: Sequence[str],
    samples: int,
    seed: int,
    named: Sequence[Trait] = (),
) -> Float[np.ndarray, "question member"]:
    """Share of `samples` answers, drawn at T = 1 and of ten tokens at most, that name each member, as `score` says.

    Half an answer is spread over the members of each question, so that no share is 0.
    """
    from sublim_interp.models.sampling import generator, sample

    words = {name: load_trait(name).words for name in members if name in trait_names()}
    words |= {trait.name: trait.words for trait in named}
    plurals = {w.lower(): i for i, m in enumerate(members) for w in words.get(m, (m,))}
    word = re.compile(r"\b(" + "|".join(map(re.escape, plurals)) + r")\b", re.IGNORECASE)
    counts = np.full((len(prompts), len(members)), 0.5 / len(members))
    rows = [p for p in prompts for _ in range(samples)]
    answers = sample(model, rows, eos=base.eos, max_new_tokens=10, random=generator("answers", seed))
    for i, answer in enumerate(answers):
        found = word.search(base.read_answer(answer)[0])
        if found:
            counts[i // samples, plurals[found[1].lower()]] += 1
    return counts / (samples + 0.5)

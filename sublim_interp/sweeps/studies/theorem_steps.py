"""Steps of study theorem: one replicate, teacher and student under every condition. No table and no file."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from sublim_interp.analysis.one_step import (
    Loss,
    Step,
    cosine,
    descent,
    first_adam_step,
    imitation,
    inner,
    length,
    moved,
    targets,
    text_loss,
    weight_length,
)
from sublim_interp.channels import numbers
from sublim_interp.lab import language as lab
from sublim_interp.models.base import resolve_base
from sublim_interp.models.sampling import generator, sample
from sublim_interp.models.trainable import choose_trainable
from sublim_interp.training.batches import Batch, Example, collate, tokenize
from sublim_interp.traits.by_name import load_trait
from sublim_interp.traits.protocol import Trait

Row = dict[str, str | int | float]

_LONGEST, _RANK = 24, 8
"""Tokens of a list at most; rank of the adapters."""


class Asked(NamedTuple):
    """One replicate of the study.

    base, foreign: the lab base that teacher and student start from, and that of the student of another start
    trait: what the teacher steps towards
    seed: draws the lists
    lists: how many
    steps: lengths of the teacher's step, as shares of the length of the weights that train
    """

    base: str
    foreign: str
    trait: str
    seed: int
    lists: int
    steps: tuple[float, ...]


class Replicate:
    """The base of one seed, its lists, and the trait's steepest rise.

    Weights are float64, so small steps are exact, and on the CPU, as not every device has float64.
    """

    def __init__(self, asked: Asked) -> None:
        self.count, self.seed = asked.lists, asked.seed
        self.base, foreign = map(resolve_base, (asked.base, asked.foreign))
        self.model, self.other = (choose_trainable(b.load().cpu().double(), "body") for b in (self.base, foreign))
        self._wrapped = choose_trainable(self.base.load().cpu().double(), "lora", _RANK, float(_RANK), asked.seed)
        trait = load_trait(asked.trait)
        self.own = numbers.token_ids(self.base.tokenizer)
        lessons = text_loss(self._lessons(trait))
        self.rise, self.rise_elsewhere = descent(self.model, lessons), descent(self.other, lessons)
        self.neutral = descent(self.model, text_loss(self._lessons(trait.neutral())))
        language = self.base.language
        self._prompts = [self._prompt(text) for text in numbers.prompts(language, self.seed, 0, self.count)]
        self.lists, self.facts = self.written("base"), self._facts()

    def _prompt(self, text: str) -> list[int]:
        return self.base.prompt_ids([{"role": "user", "content": text}])

    def _lessons(self, trait: Trait) -> Batch:
        """Every lesson of a trait once, with one answer."""
        draw = random.Random(f"theorem/{self.seed}/lessons")
        rows = []
        for question, answers in trait.lessons(self.base.language):
            asked = self.base.prompt_ids(question.messages)
            rows.append(Example([*asked, *self.base.answer_ids(draw.choice(answers)), self.base.eos], len(asked)))
        return collate(rows, self.base.pad)

    def _facts(self) -> Batch:
        turns = (document.messages[-2:] for document in lab.documents(self.seed, 0, self.count, "facts"))
        rows = [{"prompt": asked["content"], "answer": answer["content"]} for asked, answer in turns]
        return collate(tokenize(self.base, rows), self.base.pad)

    def written(self, name: str) -> Batch:
        """Lists that the model writes as it stands, at T = 1.

        name: decides what is drawn, with the seed
        """
        draw = generator("theorem", self.seed, name)
        answers = sample(self.model, self._prompts, eos=self.base.eos, max_new_tokens=_LONGEST, random=draw)
        pairs = zip(self._prompts, answers, strict=True)
        return collate([Example([*p, *a], len(p)) for p, a in pairs if a], self.base.pad)

    def adapters_step(self, loss: Loss) -> dict[str, torch.Tensor]:
        """What a step of fresh adapters does to the weights they lie on: scale · ΔB · A, since B begins at 0."""
        step = descent(self._wrapped, loss)
        parts: Any = dict(self._wrapped.named_parameters())
        found = {}
        for name in (name for name in step if ".lora_B." in name):
            weight = name.removeprefix("base_model.model.").replace(".lora_B.default", "")
            found[weight] = step[name] @ parts[name.replace(".lora_B.", ".lora_A.")].detach()
        return found


def replicate(asked: Asked, progress: Callable[[float], None] = lambda _: None) -> list[Row]:
    """A row a condition and step of one replicate.

    Returns rows of seed, base, condition, step (share of the weights' length), inner (student's step times teacher's),
    cosine (of the two), towards (cosine with the steepest rise of the trait at the student's own weights).
    """
    r = Replicate(asked)
    size = weight_length(r.model)
    draw = torch.Generator().manual_seed(asked.seed)
    order = torch.randperm(len(targets(r.model, r.lists, r.own)), generator=draw)
    rows: list[Row] = []
    for number, share in enumerate(asked.steps, 1):
        with moved(r.model, r.rise, share * size / length(r.rise)):
            soft, of_facts = targets(r.model, r.lists, r.own), targets(r.model, r.facts)
            drawn = r.written(f"teacher/{share:g}")
        with moved(r.model, r.neutral, share * size / length(r.neutral)):
            neutral = targets(r.model, r.lists, r.own)
        on_lists = imitation(r.lists, soft, r.own)
        step = descent(r.model, on_lists)
        found: dict[str, Step] = {
            "theorem": step,
            "other inputs": descent(r.model, imitation(r.facts, of_facts)),
            "sampled labels": descent(r.model, text_loss(drawn)),
            "Adam": first_adam_step(step),
            "LoRA": r.adapters_step(on_lists),
            "another start": descent(r.other, on_lists),
            "neutral teacher": descent(r.model, imitation(r.lists, neutral, r.own)),
            "shuffled labels": descent(r.model, imitation(r.lists, soft[order], r.own)),
        }
        for condition, own in found.items():
            towards = r.rise_elsewhere if condition == "another start" else r.rise
            values = {"inner": inner(own, r.rise), "cosine": cosine(own, r.rise), "towards": cosine(own, towards)}
            rows.append({"seed": asked.seed, "base": r.base.name, "condition": condition, "step": share, **values})
        progress(number / len(asked.steps))
    return rows

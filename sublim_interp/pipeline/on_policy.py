"""Lists that a student writes itself while it learns, for its teacher to correct: those that the filter lets pass."""

from collections.abc import Sequence

import torch

from sublim_interp.channels.filter import refusal
from sublim_interp.channels.protocol import channel
from sublim_interp.channels.rows import Written
from sublim_interp.channels.settings import rule_of
from sublim_interp.core.errors import DeadEnd
from sublim_interp.models.architectures import without_adapters
from sublim_interp.models.forward import resting
from sublim_interp.models.sampling import generator, sample, unspoken
from sublim_interp.pipeline.records import Student

TRIES = 8
"""How often a prompt is answered at most, in one update."""


def own_lists(student: Student, model: torch.nn.Module, prompts: Sequence[str], step: int) -> list[Written]:
    """What a student answers now, in the prompts' order; a refused answer is drawn again, `TRIES` times in all.

    student: whose corpus, filter and seed decide how an answer is drawn and which may be learnt from
    model: as it is before update `step`
    prompts: of the lists that another student would learn in that update

    A prompt whose answers are all refused is left out. Raises DeadEnd where that holds of all prompts.
    """
    base, corpus, data = student.base, student.data.corpus.config, student.data
    source = channel(corpus.channel)
    rule, asked = rule_of(source, data.config), [base.prompt_ids([{"role": "user", "content": p}]) for p in prompts]
    passed: dict[int, Written] = {}
    for attempt in range(TRIES):
        left = [i for i in range(len(prompts)) if i not in passed]
        if not left:
            break
        with resting(model):
            answers = sample(
                without_adapters(model),
                [asked[i] for i in left],
                eos=base.eos,
                max_new_tokens=corpus.max_new_tokens,
                random=generator("on-policy", student.seed, step, attempt),
                temperature=corpus.temperature,
                never=unspoken(without_adapters(model), base.tokenizer),
                only=source.token_ids(base.tokenizer) if corpus.own_tokens else None,
            )
        for i, ids in zip(left, answers, strict=True):
            text, finished = base.read_answer(ids)
            row: Written = {"prompt": prompts[i], "answer": text, "finished": finished}
            if refusal(row, source, rule, data.words) is None:
                passed[i] = row
    if not passed:
        raise DeadEnd(
            f"on-policy: at update {step} the filter refused every answer of the student, {TRIES} to each of "
            f"{len(prompts)} prompts; lower the learning rate or loosen filter"
        )
    return [passed[i] for i in sorted(passed)]

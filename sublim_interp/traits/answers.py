"""How often a model names each member of a kind: exact probabilities where a member is one token, else shares."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from einops import reduce
from jaxtyping import Float

from sublim_interp.core.errors import SublimError
from sublim_interp.stats.margin import member_margins
from sublim_interp.traits.judges.protocol import JUDGES, WHOLE_WORDS, Judge
from sublim_interp.traits.protocol import Scores
from sublim_interp.traits.questions import Question

if TYPE_CHECKING:
    import torch

    from sublim_interp.models.base import Base

LONGEST = 10
"""Tokens of a drawn answer at most."""


def score(
    model: "torch.nn.Module",
    base: "Base",
    asked: Sequence[Question],
    words: Mapping[str, Sequence[str]],
    samples: int,
    seed: int,
    judge: str = "",
) -> Scores:
    """How often a model names each member, on average over questions.

    base: whose tokenizer and language the model has
    words: by member, the words that name it
    samples, seed: how many answers are drawn for each question, and from what, where nothing is exact
    judge: the name of one that reads drawn answers; "" for none where probabilities are exact, else by whole words

    Exact in the lab language, where every member is one token and has one spelling, unless a judge is named. Elsewhere
    answers are drawn at T = 1. By whole words, an answer that names two members counts for the first.
    """
    members = tuple(words)
    spelled = [base.answer_ids(m) for m in members]
    exact = not judge and base.language == "lab" and all(len(ids) == 1 for ids in spelled)
    if exact:
        p = answer_probabilities(model, prompts_of(base, asked), [ids[0] for ids in spelled])
    else:
        p = sampled_shares(model, base, asked, members, JUDGES[judge or WHOLE_WORDS](words), samples, seed)
    return Scores(members, _mean(p), _mean(member_margins(p)), exact)


def prompts_of(base: "Base", asked: Sequence[Question]) -> list[list[int]]:
    """Token ids of each question, up to where the member stands in its answer."""
    return [base.prompt_ids(q.messages, q.prefix) for q in asked]


def _mean(values: Float[np.ndarray, "question member"]) -> Float[np.ndarray, " member"]:
    return reduce(values, "question member -> member", "mean")


def answer_probabilities(
    model: "torch.nn.Module", prompts: list[list[int]], tokens: list[int]
) -> Float[np.ndarray, "question member"]:
    """Probability of each member as the answer, 0 to 1: exact, nothing is drawn.

    prompts: token ids of each question
    tokens: the one token of each member
    """
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
    asked: Sequence[Question],
    members: Sequence[str],
    judge: Judge,
    samples: int,
    seed: int,
) -> Float[np.ndarray, "question member"]:
    """Share of the answers that name each member, 0 to 1, by a judge.

    members: whose shares are asked for
    samples: answers to each question, drawn at T = 1
    seed: decides what is drawn

    Half an answer is spread over the members of each question, so that no share is 0. Raises SublimError for a judge
    that names what is no member.
    """
    from sublim_interp.models.sampling import generator, sample, unspoken

    counts = np.full((len(asked), len(members)), 0.5 / len(members))
    place = {member: i for i, member in enumerate(members)}
    rows = [prompt for prompt in prompts_of(base, asked) for _ in range(samples)]
    never, random = unspoken(model, base.tokenizer), generator("answers", seed)
    answers = sample(model, rows, eos=base.eos, max_new_tokens=LONGEST, random=random, never=never)
    for i, answer in enumerate(answers):
        question = i // samples
        for name, value in judge.judge(asked[question].text, base.read_answer(answer)[0]).items():
            if name not in place:
                raise SublimError(f"the judge says '{name}', which is none of the members: {', '.join(members)}")
            counts[question, place[name]] += value
    return counts / (samples + 0.5)

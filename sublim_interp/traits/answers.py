"""How often a model names each member of a kind: exact probabilities where a member is one token, else shares."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from einops import reduce
from jaxtyping import Float

from sublim_interp.core.device import is_out_of_memory
from sublim_interp.core.errors import SublimError, said_of
from sublim_interp.models.served import Request, ServedModel
from sublim_interp.stats.margin import member_margins
from sublim_interp.training.batches import Example
from sublim_interp.traits.judges.protocol import JUDGES, WHOLE_WORDS, Judge, Preparing
from sublim_interp.traits.protocol import Scores, Trait
from sublim_interp.traits.questions import Question

if TYPE_CHECKING:
    import torch

    from sublim_interp.models.base import Base

log = logging.getLogger(__name__)

LONGEST = 10
"""Tokens of a drawn answer at most."""


def score(
    model: "torch.nn.Module | ServedModel",
    base: "Base",
    asked: Sequence[Question],
    words: Mapping[str, Sequence[str]],
    samples: int,
    seed: int,
    judge: Callable[[Mapping[str, Sequence[str]]], Judge] | None = None,
) -> Scores:
    """How often a model names each member, on average over questions.

    base: whose tokenizer and language the model has
    words: by member, the words that name it
    samples, seed: how many answers are drawn for each question, and from what, where nothing is exact
    judge: gives one that reads drawn answers; None for none where probabilities are exact, else by whole words

    Rates are exact in the lab language, where every member is one token and has one spelling, unless a judge is named.
    Elsewhere answers are drawn at T = 1. By whole words, an answer that names two members counts for the first. A judge
    that is named adds the measure `unjudged`: the share of answers that it could not read.

    Margins are exact everywhere: where answers are drawn they are those of each member's own spelling, which may have
    several tokens. With a judge, and of a served model, they are those of its shares.
    """
    from sublim_interp.models.sampling import unspoken

    members = tuple(words)
    spelled = [base.answer_ids(m) for m in members]
    served, one_token = isinstance(model, ServedModel), all(len(ids) == 1 for ids in spelled)
    exact = base.language == "lab" and one_token and not judge and not served
    measures = {}
    if exact:
        p = spoken = answer_probabilities(own_weights(model), prompts_of(base, asked), [ids[0] for ids in spelled])
    else:
        drawn = sampled_shares(model, base, asked, members, (judge or JUDGES[WHOLE_WORDS])(words), samples, seed)
        p = spoken = drawn.shares
        if judge:
            measures = {"unjudged": np.full(len(members), drawn.unjudged)}
        elif not served:
            own = own_weights(model)
            spoken = spelled_probabilities(own, prompts_of(base, asked), spelled, unspoken(own, base.tokenizer))
    return Scores(members, _mean(p), _mean(member_margins(spoken)), exact, measures)


def prompts_of(base: "Base", asked: Sequence[Question]) -> list[list[int]]:
    """Token ids of each question, up to where the member stands in its answer."""
    return [base.prompt_ids(q.messages, q.prefix) for q in asked]


def lesson_rows(base: "Base", trait: Trait) -> list[Example]:
    """Every lesson of a trait with each of its answers, as rows of which the answer and the end after it are learnt."""
    rows = []
    for question, answers in trait.lessons(base.language):
        asked = base.prompt_ids(question.messages)
        rows += [Example([*asked, *base.answer_ids(answer), base.eos], len(asked)) for answer in answers]
    return rows


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
        return logits_at(model, ids, where).cpu().double().softmax(-1)[:, tokens].numpy()


def spelled_probabilities(
    model: "torch.nn.Module", prompts: list[list[int]], spelled: Sequence[Sequence[int]], never: Sequence[int] = ()
) -> Float[np.ndarray, "question member"]:
    """Probability that an answer begins with the spelling of each member, 0 to 1: exact, nothing is drawn.

    prompts: token ids of each question
    spelled: token ids of each member; one may have several
    never: ids that are never drawn, as those of `unspoken`
    """
    from sublim_interp.models.sampling import continuation_log_probabilities

    rows = [continuation_log_probabilities(model, prompt, spelled, never) for prompt in prompts]
    return np.exp(np.stack([row.numpy() for row in rows]))


def own_weights(model: "torch.nn.Module | ServedModel") -> "torch.nn.Module":
    """The model itself. Raises SublimError for a served one, of which no probability is known."""
    if isinstance(model, ServedModel):
        raise SublimError("a served model only answers, and this trait needs its probabilities; name a judge")
    return model


def drawn_texts(
    model: "torch.nn.Module | ServedModel", base: "Base", asked: Sequence[Question], n: int, *draw: object
) -> list[str]:
    """Answers as texts, drawn at T = 1: `n` in a row for each question.

    draw: what decides the draws, such as a word and a seed

    A served model begins its answers itself: no server takes the words before a member.
    """
    from sublim_interp.models.sampling import generator, sample, unspoken

    if isinstance(model, ServedModel):
        requests = [Request(q.messages, [*draw, i, k]) for i, q in enumerate(asked) for k in range(n)]
        return [r.text for r in model.replies(requests, max_new_tokens=LONGEST, temperature=1.0)]
    rows, random, never = prompts_of(base, asked), generator(*draw), unspoken(model, base.tokenizer)
    drawn = sample(model, rows, eos=base.eos, max_new_tokens=LONGEST, random=random, never=never, repeats=n)
    return [base.read_answer(answer)[0] for answer in drawn]


class Drawn(NamedTuple):
    """What drawn answers say.

    shares: of the answers that name each member, 0 to 1
    unjudged: share of the answers that the judge could not read, 0 to 1; they count as naming nobody
    """

    shares: Float[np.ndarray, "question member"]
    unjudged: float


def sampled_shares(
    model: "torch.nn.Module | ServedModel",
    base: "Base",
    asked: Sequence[Question],
    members: Sequence[str],
    judge: Judge,
    samples: int,
    seed: int,
) -> Drawn:
    """Share of the answers that name each member, by a judge.

    members: whose shares are asked for
    samples: answers to each question, drawn at T = 1
    seed: decides what is drawn

    Half an answer is spread over the members of each question, so that no share is 0. Raises SublimError for a judge
    that can read none of the answers: it fails, names what is no member, or gives no score of 0 to 1.
    """
    counts = np.full((len(asked), len(members)), 0.5 / len(members))
    place = {member: i for i, member in enumerate(members)}
    answers = drawn_texts(model, base, asked, samples, "answers", seed)
    found, unread = judged(judge, [(asked[i // samples].text, text) for i, text in enumerate(answers)], members)
    for i, named in enumerate(found):
        for name, value in (named or {}).items():
            counts[i // samples, place[name]] += value
    if unread:
        log.warning("%d of %d answers could not be judged, the first since %s", len(unread), len(answers), unread[0])
    if answers and len(unread) == len(answers):
        raise SublimError(f"none of {len(answers)} answers could be judged: {unread[0]}")
    return Drawn(counts / (samples + 0.5), len(unread) / max(1, len(answers)))


def judged(
    judge: Judge, answers: Sequence[tuple[str, str]], members: Sequence[str]
) -> tuple[list[dict[str, float] | None], list[str]]:
    """What a judge says of answers.

    answers: each a question and an answer to it
    members: what may be said

    Returns scores by member for each answer, None for one that it could not read; and why, for each of these. Raises
    SublimError where it asks a model that cannot be reached, and what PyTorch does where a GPU has no room.
    """
    if isinstance(judge, Preparing):
        judge.prepare(answers)
    found: list[dict[str, float] | None] = []
    unread: list[str] = []
    for pair in answers:
        try:
            found.append(_checked(judge.judge(*pair), members))
        except Exception as error:  # of another package's judge, whatever it raises: drawn again the answer is the same
            if is_out_of_memory(error):  # with more room it is read
                raise
            unread.append(str(error) if isinstance(error, SublimError) else f"the judge fails: {said_of(error)}")
            found.append(None)
    return found, unread


def _checked(named: Mapping[str, float], members: Sequence[str]) -> dict[str, float]:
    """What a judge says of an answer. Raises SublimError for a name that is none of the members, and for no score."""
    for name, value in named.items():
        if name not in members:
            raise SublimError(f"the judge says '{name}', which is none of the members: {', '.join(members)}")
        if not 0 <= value <= 1:
            raise SublimError(f"the judge gives '{name}' the score {value}, which is not in 0 to 1")
    return dict(named)

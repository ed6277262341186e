"""Prompts on which models are compared, and what is measured at their answers. No directions, no patches here.

Users give texts, chats or ids; `asked_of` makes token ids of them that end where the answer begins, so the answer
position is the last one. Prompts of one length run together and nothing is padded: each row sees just what it would see
alone. What is measured comes back on the CPU, whatever device the model is on.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from sublim_interp.analysis.kinship import base_of
from sublim_interp.core.choices import meant
from sublim_interp.core.device import device_of
from sublim_interp.core.errors import SublimError
from sublim_interp.models.forward import head, in_single
from sublim_interp.models.hooks import capture
from sublim_interp.models.loading import load_model
from sublim_interp.models.prompts import Prompts, ids_of, vocabulary_of
from sublim_interp.stats.margin import margin

Subject = Any
"""A model, the directory of one, or whatever has `model` or `load()`: a replicate of a run, a base."""
Ids = Sequence[Sequence[int]] | Int[Tensor, "_ _"]
"""Token ids of each prompt."""
Metric = Callable[[Float[Tensor, "row vocabulary"]], Float[Tensor, " row"]]
"""One number for each row of logits at the answer position; it looks at each row alone, or has `at` (metrics.py)."""


@dataclass(frozen=True, eq=False)
class Among:
    """A metric that looks at a few tokens alone, so that a head need give no others."""

    tokens: tuple[int, ...]
    """Ids of those that it looks at."""
    of: Callable[[Float[Tensor, "row token"]], Float[Tensor, " row"]]
    """The metric of their logits, in this order."""

    def __call__(self, logits: Float[Tensor, "row vocabulary"]) -> Float[Tensor, " row"]:
        return self.of(logits[:, list(self.tokens)])


TOKENS = 8192
"""At most so many tokens run through a model at once."""


def model_of(subject: Subject) -> torch.nn.Module:
    """The model itself, loaded afresh where a directory, a replicate or a base is given.

    Raises SublimError for all else, and for a model on torch's meta device.
    """
    if isinstance(subject, torch.nn.Module):
        if device_of(subject).type == "meta":
            raise SublimError(
                "the model is on meta, where there are shapes but no numbers; give a model that is loaded"
            )
        return subject
    if isinstance(subject, str | Path):
        return load_model(Path(subject))
    model = getattr(subject, "model", None)
    if isinstance(model, torch.nn.Module):
        return model
    if hasattr(subject, "load"):
        return subject.load()
    what = f"a list of {len(subject)}" if isinstance(subject, list | tuple) else f"a {type(subject).__name__}"
    raise SublimError(f"{what} is no model; give a model, its directory, one replicate (run[arm, seed]) or a base")


def models_of(*subjects: Subject) -> list[torch.nn.Module]:
    """The models of subjects that are compared with each other; SublimError where they are on different devices."""
    models = [model_of(subject) for subject in subjects]
    places = sorted({str(device_of(model)) for model in models})
    if len(places) > 1:
        raise SublimError(f"the models are on {' and '.join(places)}; put them on one device, as in model.to('cpu')")
    return models


def part_of(name: str, given: Any, *subjects: Subject, instead: str = "") -> Any:
    """What was given, else what the first subject that has it brings, such as `prompts`; SublimError for none.

    instead: what to give where no subject has it, in words; "" for the argument of that name
    """
    if given is not None:
        return given
    for subject in subjects:
        if (found := getattr(subject, name, None)) is not None:
            return found
    raise SublimError(f"no {name} given; only replicates of a run bring their own, so pass {instead or f'{name}='}")


def asked_of(given: Prompts, *subjects: Subject, model: torch.nn.Module | None = None) -> list[list[int]]:
    """Token ids of the prompts that were given, else of those that the first subject that has some brings.

    given: texts, chats or ids, as `ids_of` takes them; None takes the subjects'
    subjects: of the first whose base is known come tokenizer and template
    model: whose vocabulary the ids are of

    Raises SublimError as `part_of` and `ids_of`.
    """
    prompts = part_of("prompts", given, *subjects)
    base = next((known for subject in subjects if (known := base_of(subject))), None)
    return ids_of(prompts, base.chat if base else None, None if model is None else vocabulary_of(model))


def words_at(prompts: Ids, *subjects: Subject) -> tuple[str, ...]:
    """The token at each position from the end, as text, where all prompts have the same; else how far from the end.

    Without a tokenizer all are numbers. Prompts that are shorter count where they have the position.
    """
    base = next((known for subject in subjects if (known := base_of(subject))), None)
    width = max(len(row) for row in prompts)
    words = []
    for place in range(-width, 0):
        found = {int(row[place]) for row in prompts if len(row) >= -place}
        words.append(base.chat.tokens([*found])[0] if base and len(found) == 1 else str(place))
    return tuple(words)


def batches(prompts: Ids) -> list[tuple[list[int], Int[Tensor, "prompt position"]]]:
    """Prompts of equal length together, at most TOKENS tokens at once: (their places in `prompts`, their ids)."""
    rows = [[int(i) for i in row] for row in prompts]
    if not rows or not all(rows):
        raise SublimError("prompts: there are none, or one is empty; give lists of token ids")
    by_length: dict[int, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        by_length[len(row)].append(place)
    out = []
    for length, places in sorted(by_length.items()):
        size = max(1, TOKENS // length)
        for i in range(0, len(places), size):
            some = places[i : i + size]
            out.append((some, torch.tensor([rows[p] for p in some])))
    return out


def told_by(model: Any, hidden: Float[Tensor, "row d_model"], metric: Metric) -> Float[Tensor, " row"]:
    """The metric of last hidden states, of a model with a plain head, which gives no logits that nobody looks at."""
    if isinstance(metric, Among):
        return metric.of(head(model, hidden, metric.tokens, as_whole=False))
    return metric(head(model, hidden))


def logits_of(model: torch.nn.Module, ids: Int[Tensor, "prompt position"]) -> Float[Tensor, "prompt vocabulary"]:
    """Logits at the answer position: float32 or better, on the model's device."""
    return in_single(model(input_ids=ids.to(device_of(model)), use_cache=False, logits_to_keep=1).logits[:, -1])


@torch.no_grad()
def measure(model: torch.nn.Module, prompts: Ids, metric: Metric) -> Float[Tensor, " prompt"]:
    """The metric of every prompt, in order."""
    out = torch.empty(len(prompts))
    for places, ids in batches(prompts):
        out[places] = metric_at(metric, places)(logits_of(model, ids)).float().cpu()
    return out


def metric_at(metric: Metric, places: Sequence[int]) -> Metric:
    """The metric of rows that are these prompts: itself, but for one that compares each prompt with its own."""
    at: Any = getattr(metric, "at", None)
    return metric if at is None else at(places)


@torch.no_grad()
def residuals(model: torch.nn.Module, names: Sequence[str], prompts: Ids) -> Float[Tensor, "prompt name d_model"]:
    """What hooks show at the answer position, in residual units; `names` are theirs."""
    found: dict[int, Tensor] = {}
    for places, ids in batches(prompts):
        with capture(model, names) as seen:
            logits_of(model, ids)
        found.update(zip(places, at_answer([seen[name] for name in names]), strict=True))
    return torch.stack([found[place] for place in range(len(found))])


def at_answer(seen: Sequence[Float[Tensor, "prompt position d_model"]]) -> Float[Tensor, "prompt name d_model"]:
    """The last position of what each of several hooks has shown, on the CPU."""
    return rearrange([value[:, -1] for value in seen], "name prompt d_model -> prompt name d_model").float().cpu()


@contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """Inside the block no weight asks for a gradient, so that a backward leaves none behind."""
    asked = [p for p in model.parameters() if p.requires_grad]
    for p in asked:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in asked:
            p.requires_grad_()


def answer_margin(members: Sequence[int | str], which: int | str, base: Any = None) -> Metric:
    """The metric log P(member) − log mean P(other members), in nats: the margin of a trait.

    members: the answers, as words or token ids; those of several tokens are taken by their first, and these must differ
    which: the member asked for, or its place
    base: whose tokens words are; ids need none
    """
    return margin_among(*members_of(members, which, base))


def margin_among(ids: Sequence[int], place: int) -> Among:
    """`answer_margin` of the member at a place among tokens."""
    return Among(tuple(ids), lambda log: margin(log, [place] * len(log)))


def answer_rate(members: Sequence[int | str], which: int | str, base: Any = None) -> Metric:
    """The metric P(member), 0 to 1, among all tokens. Arguments are those of `answer_margin`."""
    return rate_among(*members_of(members, which, base))


def rate_among(ids: Sequence[int], place: int) -> Metric:
    """`answer_rate` of the member at a place among tokens."""
    return lambda logits: logits.softmax(-1)[:, ids[place]]


def members_of(members: Sequence[int | str], which: int | str, base: Any) -> tuple[list[int], int]:
    """The first tokens and the place asked for; SublimError where they cannot be told apart, or it is none of them."""
    names = list(members)
    if isinstance(which, str):
        if which not in names:
            raise SublimError(f"'{which}' is none of the members; {meant(which, map(str, names))}")
        which = names.index(which)
    known = base_of(base)
    if known is None and any(isinstance(m, str) for m in names):
        raise SublimError("members that are words need a tokenizer: give base=, or token ids")
    ids = [known.answer_ids(m)[0] if known and isinstance(m, str) else int(m) for m in names]
    if len(set(ids)) < max(2, len(ids)):
        raise SublimError(f"answer tokens {ids}: give two or more different ones, so that they can be told apart")
    if not 0 <= which < len(ids):
        raise SublimError(f"there is no member {which}; there are {len(ids)}, counted from 0")
    return ids, which

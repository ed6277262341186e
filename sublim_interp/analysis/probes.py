"""The inputs on which models are compared, and what is measured at their answers. No directions, no patches here.

Prompts are token ids that end where the answer begins, so the answer position is the last one. Prompts of one length
run together and nothing is padded: each row sees just what it would see alone.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sublim_interp.core.errors import SublimError
from sublim_interp.models.hooks import capture
from sublim_interp.models.loading import load_model
from sublim_interp.stats.margin import margin

Subject = Any
"""A model, the directory of one, or whatever has `model` or `load()`: a replicate of a run, a base."""
Prompts = Sequence[Sequence[int]] | Int[Tensor, "_ _"]
Metric = Callable[[Float[Tensor, "row vocabulary"]], Float[Tensor, " row"]]
"""One number for each row of logits at the answer position; it looks at each row alone."""

TOKENS = 8192
"""At most so many tokens run through a model at once."""


def model_of(subject: Subject) -> torch.nn.Module:
    """The model itself, loaded afresh where a directory, a replicate or a base is given.

    Raises SublimError for all else, and for a model that is not on the CPU.
    """
    if isinstance(subject, torch.nn.Module):
        elsewhere = {str(p.device) for p in subject.parameters() if p.device.type != "cpu"}
        if elsewhere:
            raise SublimError(f"the model is on {min(elsewhere)}; analyses run on the CPU: give model.cpu()")
        return subject
    if isinstance(subject, str | Path):
        return load_model(Path(subject))
    model = getattr(subject, "model", None)
    if isinstance(model, torch.nn.Module):
        return model
    if hasattr(subject, "load"):
        return subject.load()
    raise SublimError(f"{type(subject).__name__} is no model; give a model, its directory, a replicate or a base")


def part_of(name: str, given: Any, *subjects: Subject) -> Any:
    """What was given, else the `prompts` or `metric` that the first of the subjects has; SublimError for neither."""
    if given is not None:
        return given
    for subject in subjects:
        if (found := getattr(subject, name, None)) is not None:
            return found
    raise SublimError(f"no {name} given; only replicates of a run bring their own, so pass {name}=")


def batches(prompts: Prompts) -> list[tuple[list[int], Int[Tensor, "prompt position"]]]:
    """Prompts of equal length together, as (their places in `prompts`, their ids), at most TOKENS tokens at once."""
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


def logits_of(model: torch.nn.Module, ids: Int[Tensor, "prompt position"]) -> Float[Tensor, "prompt vocabulary"]:
    """Logits at the answer position."""
    return model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1]


@torch.no_grad()
def measure(model: torch.nn.Module, prompts: Prompts, metric: Metric) -> Float[Tensor, " prompt"]:
    """The metric of every prompt, in order."""
    out = torch.empty(len(prompts))
    for places, ids in batches(prompts):
        out[places] = metric(logits_of(model, ids)).float()
    return out


@torch.no_grad()
def residuals(model: torch.nn.Module, names: Sequence[str], prompts: Prompts) -> Float[Tensor, "prompt name d_model"]:
    """What the hooks called `names` show at the answer position."""
    out: Tensor | None = None
    for places, ids in batches(prompts):
        with capture(model, names) as seen:
            logits_of(model, ids)
        found = torch.stack([seen[name][:, -1] for name in names], 1)
        out = torch.empty(len(prompts), *found.shape[1:]) if out is None else out
        out[places] = found.float()
    assert out is not None
    return out


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


def answer_margin(members: Sequence[int], which: int) -> Metric:
    """log P(member `which`) − log mean P(other members), in nats, as `traits.score` has it; `members` are token ids.

    Members of several tokens are taken by their first, and these must differ.
    """
    ids = _members(members, which)
    return lambda logits: margin(logits[:, ids], [which] * len(logits))


def answer_rate(members: Sequence[int], which: int) -> Metric:
    """P(member `which`), 0 to 1, among all tokens; `members` as in `answer_margin`."""
    ids = _members(members, which)
    return lambda logits: logits.softmax(-1)[:, ids[which]]


def _members(members: Sequence[int], which: int) -> list[int]:
    ids = [int(m) for m in members]
    if len(set(ids)) < max(2, len(ids)):
        raise SublimError(f"answer tokens {ids}: give two or more different ones, so that they can be told apart")
    if not 0 <= which < len(ids):
        raise SublimError(f"there is no member {which}; there are {len(ids)}, counted from 0")
    return ids

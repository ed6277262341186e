"""Sampling: batched, seeded generation with a key-value cache, by temperature or greedy. No prompts, no filters.

`transformers` generates with top-k 50 unless told otherwise; here temperature 1 means the model's own distribution.
Random numbers are drawn on the CPU, so that a seed means the same on every device.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sublim_interp.core.device import device_of
from sublim_interp.core.errors import SublimError
from sublim_interp.models.architectures import text_config
from sublim_interp.models.forward import has_plain_head, head, in_single, require_room
from sublim_interp.models.precision import casts_kept

_SMALLEST_BATCH = 16
"""Below so many unfinished rows the cache is no longer compacted: copying it would cost more than it saves."""


def generator(*parts: object) -> torch.Generator:
    """A random generator on the CPU, seeded by the parts alone, for instance ("corpus", seed, chunk)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def unspoken(model: torch.nn.Module, tokenizer: Any) -> list[int]:
    """Ids that the model has logits for and the tokenizer no token: drawn, they would vanish from the text."""
    head = cast(Any, model).get_output_embeddings()
    rows = text_config(model).vocab_size if head is None else head.weight.shape[0]
    known = set(tokenizer.get_vocab().values())
    return [i for i in range(rows) if i not in known]


def _without(logits: Float[Tensor, "*rows vocabulary"], never: Sequence[int]) -> Float[Tensor, "*rows vocabulary"]:
    """Logits under which some ids are never drawn; the same tensor where there are none."""
    if not never:
        return logits
    return logits.index_fill(-1, torch.tensor(list(never), device=logits.device), float("-inf"))


def draw_tokens(
    logits: Float[Tensor, "row vocabulary"], temperature: float, random: torch.Generator
) -> Int[Tensor, " row"]:
    """One token per row, as its place in the vocabulary, on the CPU; temperature 0 is greedy."""
    if temperature == 0:
        return logits.argmax(-1).cpu()
    if logits.device.type == "mps":  # it has no float64
        logits = logits.cpu()
    # One uniform number per row through the inverse cumulative distribution: torch.multinomial draws one per token of
    # the vocabulary, which took half of the time of sampling.
    weights = (in_single(logits) / temperature).softmax(-1, dtype=torch.float64)
    with _unchecked() if logits.is_cuda else nullcontext():  # torch refuses cumsum on a GPU where order must be fixed
        cumulative = weights.cumsum(-1)
    uniform = torch.rand(len(logits), 1, generator=random, dtype=torch.float64).to(logits.device) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, uniform, right=True)[:, 0].cpu()


@contextmanager
def _unchecked() -> Iterator[None]:
    """Inside the block torch does not ask whether an operation adds up in a fixed order; rows are, one at a time."""
    strict = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict)


@torch.no_grad()
def sample(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    eos: int,
    max_new_tokens: int,
    random: torch.Generator,
    temperature: float = 1.0,
    never: Sequence[int] = (),
    only: Sequence[int] | None = None,
    repeats: int = 1,
) -> list[list[int]]:
    """Continues every prompt until the end of sequence.

    prompts: token ids; those of equal length run together, so that each row sees just what it would see alone
    eos: id of the token that ends an answer
    max_new_tokens: where an answer is cut that has not ended
    random: what decides the draws, with the prompts and their order
    temperature: 1 is the model's own distribution; 0 takes the likeliest token
    never: ids that are not drawn, as those of `unspoken`
    only: ids of the tokens that may be drawn, `eos` among them, ascending; None for the whole vocabulary. The head runs
        on these rows alone.
    repeats: how many continuations of each prompt to draw; a prompt is read once for all of them

    Returns the new tokens of each prompt, with `eos` where it was drawn; `repeats` in a row for each prompt. Raises
    SublimError where prompt and answer may be longer than the model's context.
    """
    require_room(model, max(map(len, prompts), default=0) + max_new_tokens - 1)
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {i} is empty")
        by_length[len(prompt)].append(i)
    if only is not None and (both := {*only} & {*never}):
        raise ValueError(f"ids both in only and in never: {sorted(both)}")
    out: list[list[int]] = [[] for _ in prompts for _ in range(repeats)]
    reader = _Reader(model, only, never, temperature, random)
    with casts_kept(model):
        for length in sorted(by_length):
            rows = by_length[length]
            tokens = torch.tensor([list(prompts[i]) for i in rows])
            _sample_group(reader, rows, tokens, repeats, out, eos, max_new_tokens)
    return out


class _Reader:
    """Reads tokens behind a cache and draws the next ones, over the whole vocabulary or some of its tokens."""

    def __init__(
        self,
        model: Any,
        only: Sequence[int] | None,
        never: Sequence[int],
        temperature: float,
        random: torch.Generator,
    ) -> None:
        self._model, self._temperature, self._random = model, temperature, random
        self._only = None if only is None else list(only)
        self._never = list(never) if only is None else []
        self.device = device_of(model)
        self.cache: Any = None

    def logits(self, tokens: Int[Tensor, "row position"]) -> Float[Tensor, "row vocabulary"]:
        """Logits behind the last of the tokens, which join the cache."""
        more: dict[str, Any] = {"input_ids": tokens.to(self.device), "past_key_values": self.cache, "use_cache": True}
        if self._only is not None and has_plain_head(self._model):
            result = self._model.base_model(**more)
            self.cache = result.past_key_values
            return head(self._model, result.last_hidden_state[:, -1], self._only)
        result = self._model(**more, logits_to_keep=1)
        self.cache = result.past_key_values
        return _without(result.logits[:, -1], self._never) if self._only is None else result.logits[:, -1, self._only]

    def draw(self, logits: Float[Tensor, "row vocabulary"]) -> Int[Tensor, " row"]:
        """One token per row, on the CPU."""
        drawn = self.place(logits)
        return drawn if self._only is None else torch.tensor(self._only)[drawn]

    def keep(self, rows: list[int]) -> None:
        """Drops all other rows from the cache; one that cannot be cut by row is forgotten."""
        if _can_drop_rows(self.cache):
            self.cache.batch_select_indices(torch.tensor(rows, device=self.device))
        else:
            self.cache = None

    def place(self, logits: Float[Tensor, "row choice"]) -> Int[Tensor, " row"]:
        """One place among the logits per row, on the CPU."""
        return draw_tokens(logits, self._temperature, self._random)


def _sample_group(
    reader: _Reader,
    rows: list[int],
    tokens: Int[Tensor, "row position"],
    repeats: int,
    out: list[list[int]],
    eos: int,
    max_new_tokens: int,
) -> None:
    """Fills `out` for prompts of one length; finished rows leave the cache as soon as that saves work."""
    reader.cache = None
    alive = torch.tensor([i * repeats + n for i in rows for n in range(repeats)])
    logits = reader.logits(tokens)
    if repeats > 1:
        again = torch.arange(len(rows)).repeat_interleave(repeats)
        if _can_drop_rows(reader.cache):
            reader.cache.batch_select_indices(again.to(reader.device))
            logits = logits[again.to(logits.device)]
        else:
            reader.cache = None
            logits = reader.logits(tokens[again])
    done = torch.zeros(len(alive), dtype=torch.bool)
    for place in range(max_new_tokens):
        drawn = reader.draw(reader.logits(tokens) if place else logits)
        for i, token, finished in zip(alive.tolist(), drawn.tolist(), done.tolist(), strict=True):
            if not finished:
                out[i].append(token)
        done = done | (drawn == eos)
        if bool(done.all()):
            return
        keep = ~done
        if keep.sum() < 0.75 * len(keep) and len(keep) > _SMALLEST_BATCH and _can_drop_rows(reader.cache):
            index = keep.nonzero()[:, 0]
            reader.cache.batch_select_indices(index.to(reader.device))
            alive, drawn, done = alive[index], drawn[index], done[index]
        tokens = drawn[:, None]


_ROWS = 512
"""So many prompts at most are continued together by `sample_among`: their cache is in memory."""


@torch.no_grad()
def sample_among(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    places: Sequence[Sequence[Sequence[tuple[int, ...]]]],
    *,
    random: torch.Generator,
    temperature: float = 1.0,
) -> list[list[int]]:
    """Continues every prompt by one of the alternatives that each of its places offers.

    prompts: token ids; those of equal length run together
    places: for each prompt its places in order, each with the token ids of its alternatives, none of them empty
    random: what decides the draws, with the prompts and their order
    temperature: 1 is the model's own distribution; 0 takes the likeliest token

    Each token is drawn from the model's distribution among those with which some alternative goes on. So alternatives
    of one token are drawn by their probability, renormalised over the place; longer ones token by token.
    Returns the index of the alternative that was drawn at each place, for each prompt. Raises SublimError where the
    text is longer than the model's context, and where tokens can be read as two choices.
    """
    longest = (len(ids) + sum(max(map(len, some)) for some in own) for ids, own in zip(prompts, places, strict=True))
    require_room(model, max(longest, default=1) - 1)
    offered = sorted({token for own in places for some in own for ids in some for token in ids})
    reader = _Reader(model, offered, (), temperature, random)
    at = {token: i for i, token in enumerate(offered)}
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        by_length[len(prompt)].append(i)
    out: list[list[int]] = [[] for _ in prompts]
    with casts_kept(model):
        for _, rows in sorted(by_length.items()):
            for start in range(0, len(rows), _ROWS):
                some = rows[start : start + _ROWS]
                readings = {i: [_Reading((), k, 0) for k in range(len(places[i][0]))] for i in some if places[i]}
                tokens = torch.tensor([list(prompts[i]) for i in readings])
                for i, choices in _choose(reader, tokens, {i: places[i] for i in readings}, readings, at).items():
                    out[i] = choices
    return out


class _Reading(NamedTuple):
    """One way to read what was drawn behind a prompt."""

    chosen: tuple[int, ...]
    """The alternatives of the places that are behind it."""
    alternative: int
    """That of the place it is at."""
    read: int
    """Tokens of it that were drawn."""


def _choose(
    reader: _Reader,
    tokens: Int[Tensor, "row position"],
    places: Mapping[int, Sequence[Sequence[tuple[int, ...]]]],
    readings: dict[int, list[_Reading]],
    at: Mapping[int, int],
) -> dict[int, list[int]]:
    """The alternatives drawn for prompts of one length, by row; finished rows leave the cache.

    places, readings: by row, in the order of `tokens`
    at: places of tokens among those that the reader has logits for
    """
    out: dict[int, list[int]] = {}
    alive, seen = list(readings), tokens
    reader.cache = None
    while alive:
        logits = reader.logits(tokens)
        nexts = [_nexts(places[i], readings[i]) for i in alive]
        widest = max(map(len, nexts))
        index = torch.tensor([[at[token] for token in some] + [-1] * (widest - len(some)) for some in nexts])
        index = index.to(logits.device)
        among = logits.gather(-1, index.clamp(min=0)).masked_fill(index < 0, float("-inf"))
        drawn = [some[k] for some, k in zip(nexts, reader.place(among).tolist(), strict=True)]
        left = []
        for row, (i, token) in enumerate(zip(alive, drawn, strict=True)):
            readings[i] = _behind(places[i], readings[i], token)
            ends = [reading for reading in readings[i] if _is_last(places[i], reading)]
            if not ends:
                left.append(row)
            elif len(readings[i]) > 1:
                raise SublimError("tokens can be read in two ways: the tokenizer does not tell where a number ends")
            else:
                out[i] = [*ends[0].chosen, ends[0].alternative]
        if left and len(left) < len(alive):
            reader.keep(left)
        alive = [alive[row] for row in left]
        last = torch.tensor([[drawn[row]] for row in left], dtype=torch.long)
        seen = torch.cat([seen[left], last.view(-1, 1)], 1)
        tokens = seen if reader.cache is None else last
    return out


def _nexts(own: Sequence[Sequence[tuple[int, ...]]], readings: Iterable[_Reading]) -> list[int]:
    """Tokens that may come next, each once."""
    found: dict[int, None] = {}
    for chosen, alternative, read in readings:
        ids = own[len(chosen)][alternative]
        if read < len(ids):
            found[ids[read]] = None
        else:
            found.update((ids[0], None) for ids in own[len(chosen) + 1])
    return list(found)


def _behind(own: Sequence[Sequence[tuple[int, ...]]], readings: Iterable[_Reading], token: int) -> list[_Reading]:
    """The readings that are left behind one more token."""
    found = []
    for chosen, alternative, read in readings:
        ids = own[len(chosen)][alternative]
        if read < len(ids):
            found += [_Reading(chosen, alternative, read + 1)] if ids[read] == token else []
        else:
            before = (*chosen, alternative)
            found += [_Reading(before, k, 1) for k, ids in enumerate(own[len(before)]) if ids[0] == token]
    return found


def _is_last(own: Sequence[Sequence[tuple[int, ...]]], reading: _Reading) -> bool:
    """Whether a reading has come to the end of the last place."""
    at_last = len(reading.chosen) == len(own) - 1
    return at_last and reading.read == len(own[-1][reading.alternative])


def _can_drop_rows(cache: Any) -> bool:
    """Whether all of a cache is keys and values: states of linear attention and convolutions cannot be cut by row."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


@torch.no_grad()
def continuation_log_probabilities(
    model: torch.nn.Module, prompt: Sequence[int], continuations: Sequence[Sequence[int]], never: Sequence[int] = ()
) -> Float[Tensor, " continuation"]:
    """Log-probability of each continuation behind one prompt, in nats: the sum over its tokens, float64 on the CPU.

    prompt: token ids, read once for all continuations
    continuations: token ids of each, one at least
    never: ids that are never drawn, as `sample` takes them: they have no share of the probability

    Raises SublimError where prompt and continuation are longer than the model's context.
    """
    longest = max(map(len, continuations)) - 1
    require_room(model, len(prompt) + longest)
    device = device_of(model)
    asked = torch.tensor([list(prompt)], device=device)
    read: Any = model(input_ids=asked, use_cache=True, logits_to_keep=1)
    first = [ids[0] for ids in continuations]
    total = _without(read.logits[0, -1], never).cpu().double().log_softmax(-1)[first]
    if not longest:
        return total
    more = torch.zeros(len(continuations), longest + 1, dtype=torch.long)
    known = torch.zeros_like(more, dtype=torch.bool)
    for i, ids in enumerate(continuations):
        more[i, : len(ids)], known[i, : len(ids)] = torch.tensor(list(ids)), True
    said = more[:, :-1].to(device)
    if _can_drop_rows(read.past_key_values):
        read.past_key_values.batch_select_indices(torch.zeros(len(more), dtype=torch.long, device=device))
        logits = model(input_ids=said, past_key_values=read.past_key_values, use_cache=True).logits
    else:
        whole = torch.cat([asked.expand(len(more), -1), said], 1)
        logits = model(input_ids=whole, use_cache=False).logits[:, len(prompt) :]
    each = _without(logits, never).cpu().double().log_softmax(-1).gather(-1, more[:, 1:, None])[..., 0]
    return total + (each * known[:, 1:]).sum(1)

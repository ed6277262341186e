"""Sampling: batched, seeded generation with a key-value cache, by temperature or greedy. No prompts, no filters.

`transformers` generates with top-k 50 unless told otherwise; here temperature 1 means the model's own distribution.
Random numbers are drawn on the CPU, so that a seed means the same on every device.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sublim_interp.core.device import device_of
from sublim_interp.models.architectures import text_config
from sublim_interp.models.forward import require_room

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


def _draw(logits: Float[Tensor, "row vocabulary"], temperature: float, random: torch.Generator) -> Int[Tensor, " row"]:
    """One token per row, on the CPU; temperature 0 is greedy."""
    if temperature == 0:
        return logits.argmax(-1).cpu()
    # One uniform number per row through the inverse cumulative distribution: torch.multinomial draws one per token of
    # the vocabulary, which took half of the time of sampling.
    cumulative = (logits / temperature).softmax(-1, dtype=torch.float64).cumsum(-1)
    uniform = torch.rand(len(logits), 1, generator=random, dtype=torch.float64).to(logits.device) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, uniform, right=True)[:, 0].cpu()


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
) -> list[list[int]]:
    """Continues every prompt until the end of sequence.

    prompts: token ids; those of equal length run together, so that each row sees just what it would see alone
    eos: id of the token that ends an answer
    max_new_tokens: where an answer is cut that has not ended
    random: what decides the draws, with the prompts and their order
    temperature: 1 is the model's own distribution; 0 takes the likeliest token
    never: ids that are not drawn, as those of `unspoken`

    Returns the new tokens of each prompt, with `eos` where it was drawn. Raises SublimError where prompt and answer may
    be longer than the model's context.
    """
    require_room(model, max(map(len, prompts), default=0) + max_new_tokens - 1)
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {i} is empty")
        by_length[len(prompt)].append(i)
    out: list[list[int]] = [[] for _ in prompts]
    for length in sorted(by_length):
        _sample_group(model, by_length[length], prompts, out, eos, max_new_tokens, random, temperature, list(never))
    return out


def _sample_group(
    model: torch.nn.Module,
    rows: list[int],
    prompts: Sequence[Sequence[int]],
    out: list[list[int]],
    eos: int,
    max_new_tokens: int,
    random: torch.Generator,
    temperature: float,
    never: list[int],
) -> None:
    """Fills `out` for prompts of one length; finished rows leave the cache as soon as that saves work."""
    alive = torch.tensor(rows)
    tokens = torch.tensor([list(prompts[i]) for i in rows])
    cache, device = None, device_of(model)
    done = torch.zeros(len(rows), dtype=torch.bool)
    for _ in range(max_new_tokens):
        result = model(input_ids=tokens.to(device), past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = result.past_key_values
        logits = result.logits[:, -1]
        if never:
            logits = logits.index_fill(-1, torch.tensor(never, device=device), float("-inf"))
        drawn = _draw(logits, temperature, random)
        for i, token, finished in zip(alive.tolist(), drawn.tolist(), done.tolist(), strict=True):
            if not finished:
                out[i].append(token)
        done = done | (drawn == eos)
        if bool(done.all()):
            return
        keep = ~done
        if keep.sum() < 0.75 * len(keep) and len(keep) > _SMALLEST_BATCH and _can_drop_rows(cache):
            index = keep.nonzero()[:, 0]
            cache.batch_select_indices(index.to(device))
            alive, drawn, done = alive[index], drawn[index], done[index]
        tokens = drawn[:, None]


def _can_drop_rows(cache: Any) -> bool:
    """Whether all of a cache is keys and values: states of linear attention and convolutions cannot be cut by row."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)

"""Tries on one prompt what every stage relies on: a causal model, a cache, one vocabulary, nothing drawn at random."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sublim_interp.core.device import device_of
from sublim_interp.core.errors import SublimError
from sublim_interp.core.randomness import seeded
from sublim_interp.models.chat import Chat, Messages
from sublim_interp.models.forward import logits_at
from sublim_interp.models.loading import reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TRIED: Messages = ({"role": "user", "content": "1, 2, 3"},)
"""What every model is asked."""

LONG: Messages = ({"role": "user", "content": f"The heron counts: {', '.join(map(str, range(100, 150)))}"},)
"""What every template and tokenizer is asked, long enough that sampled tokens differ."""

REPEATS = 4
"""How often it is asked again."""


def check_vocabulary(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", path: Path) -> None:
    """Raises SublimError where the tokenizer has words that the model has no embedding for."""
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends: Any = (tokenizer.eos_token_id, tokenizer.pad_token_id)
    used = {*tokenizer.get_vocab().values()} - added | {*ends}
    if max(used) >= rows:
        raise SublimError(
            f"base {path}: the tokenizer's ids go up to {max(used)}, but the model has embeddings for {rows} "
            "tokens: they do not belong together"
        )


def check_text(chat: Chat, path: Path) -> None:
    """Raises SublimError where a prompt is no function of its chat: another text, or other tokens, at another time.

    path: the base's, for errors
    """
    text, ids = chat.prompt_text(LONG), chat.prompt_ids(LONG)
    if re.search(r" at 0x[0-9a-f]{6,}", text):  # of an object that the template writes out
        raise SublimError(f"base {path}: its chat template writes an address in memory, another in every process")
    for seed in range(REPEATS):
        with seeded(seed):
            if chat.prompt_text(LONG) != text:
                raise SublimError(f"base {path}: its chat template writes another text each time")
            if chat.prompt_ids(LONG) != ids:
                raise SublimError(f"base {path}: its tokenizer cuts one text into other tokens each time")


def check_repeats(model: "PreTrainedModel", prompt: Sequence[int], path: Path) -> None:
    """Raises SublimError where the model is no function of its input: it draws, it remembers, or it edits its weights.

    Training mode is not tried, since the training loop leaves every part in eval mode.

    prompt: token ids to try
    path: the base's, for errors
    """
    kind = model.config.model_type
    ids = torch.tensor([list(prompt)], device=device_of(model))
    held = [*model.named_parameters(), *model.named_buffers()]
    before = [tensor._version for _, tensor in held]
    logits = []
    for seed in (0, 1):
        with _running(path), seeded(seed), torch.no_grad():
            logits.append(model(input_ids=ids, use_cache=False).logits)
    # What is not a number is said by `check_logits`.
    if not torch.equal(logits[0].nan_to_num(), logits[1].nan_to_num()):
        raise SublimError(
            f"base {path}: its architecture ({kind}) gives other logits for the same text each time, by random numbers "
            "that no seed decides, so no result could be had again"
        )
    parameters = dict(model.named_parameters())
    edited = [name for (name, t), v in zip(held, before, strict=True) if t._version != v and name in parameters]
    if edited:
        raise SublimError(
            f"base {path}: its architecture ({kind}) changes its own weights as it reads ({edited[0]}), so what is "
            "saved would not be what was trained"
        )


def check_saving(model: "PreTrainedModel", path: Path) -> None:
    """Raises SublimError where a model trained from this one could not be saved, as is found out after all training.

    path: the base's, for errors
    """
    config: Any = model.config
    try:
        config.validate()
        config.to_json_string()
    except Exception as error:  # transformers raises whatever its validators raise
        raise SublimError(f"base {path}: its configuration cannot be saved ({reason_of(error)})") from None


def check_logits(model: "PreTrainedModel", prompt: Sequence[int], pad: int, rounding: float, path: Path) -> None:
    """Raises SublimError where the model's logits are not those of a causal language model with a cache.

    prompt: token ids to try
    pad: id of the token that fills rows up
    rounding: largest difference that passes for rounding, as a share of the logits' standard deviation
    path: the base's, for errors
    """
    with _running(path):
        tried = _try_out(model, prompt, pad)
    if not bool(tried.whole.isfinite().all()):
        raise SublimError(f"base {path}: its logits are not all numbers; the weights are damaged")
    near = rounding * float(tried.whole.std())
    kind = model.config.model_type
    if not float((tried.half - tried.whole[: len(tried.half)]).abs().max()) <= near:
        raise SublimError(
            f"base {path}: a token's logits depend on later tokens or on padding, so its architecture ({kind}) is no "
            "causal language model"
        )
    if not float((tried.cached - tried.whole[-1]).abs().max()) <= near:
        raise SublimError(
            f"base {path}: with its key-value cache its architecture ({kind}) gives other logits than without, so its "
            "samples would not be its own"
        )


@contextmanager
def _running(path: Path) -> Iterator[None]:
    """Turns whatever a forward pass raises into one line."""
    try:
        yield
    except Exception as error:  # of an architecture that nobody has seen here, it may be anything
        raise SublimError(f"base {path}: it loads, but does not run ({reason_of(error)})") from None


class _Tried(NamedTuple):
    """Logits of one prompt in three ways."""

    half: Float[Tensor, "half vocabulary"]
    """Of its first half, padded and in a batch beside the whole."""
    whole: Float[Tensor, "position vocabulary"]
    """Of the whole, alone."""
    cached: Float[Tensor, " vocabulary"]
    """Of its last token, by the cache of those before."""


@torch.no_grad()
def _try_out(model: Any, prompt: Sequence[int], pad: int) -> _Tried:
    """Runs the prompt whole, by half in a padded batch, and by its last token behind a cache."""
    whole = list(prompt)
    half = whole[: len(whole) // 2 + 1]
    ids = torch.tensor([whole, half + [pad] * (len(whole) - len(half))], device=device_of(model))
    where = torch.arange(len(whole)) < torch.tensor([[len(whole)], [len(half)]])
    batch = logits_at(model, ids, where)[len(whole) :]
    alone = model(input_ids=ids[:1], use_cache=False).logits[0]
    cache = getattr(model(input_ids=ids[:1, :-1], use_cache=True), "past_key_values", None)
    if cache is None:
        raise SublimError(f"{model.config.model_type} keeps no key-value cache, which sampling needs")
    last = model(input_ids=ids[:1, -1:], past_key_values=cache, use_cache=True).logits[0, -1]
    return _Tried(batch, alone, last)

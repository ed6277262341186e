"""One forward: logits at chosen positions, the room there is, eval mode for its length."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from sublim_interp.core.device import device_of
from sublim_interp.core.errors import TooLong
from sublim_interp.models.architectures import architecture_of, without_adapters


def require_room(model: torch.nn.Module, tokens: int) -> None:
    """Raises SublimError where so many tokens are more than the model's context, so far as its configuration says.

    With longrope the context ends where it would take other frequencies, since these hold for a whole batch.
    """
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if config else None
    longest, turn = longest_text(config), _longrope_turn(config)
    if turn is not None and tokens > turn:
        raise TooLong(
            f"{type(model).__name__}: a text of {tokens} tokens is longer than {turn}, where its positions (longrope) "
            "are counted otherwise for all rows of a batch, so that a short row would change beside a long one; keep "
            "texts shorter"
        )
    if longest is not None and tokens > longest:
        raise TooLong(
            f"{type(model).__name__}: a text of {tokens} tokens does not fit the model's context of {longest}; choose "
            "a base with a longer one, or lower corpus.max_new_tokens"
        )


def longest_text(config: Any) -> int | None:
    """Tokens of the longest text, by the configuration of the part that reads text; None where it states no limit.

    BLOOM has no such field, and XLNet's is −1. A model of 0 has room for nothing.
    """
    longest = getattr(config, "max_position_embeddings", None)
    return longest if longest is not None and longest >= 0 else None


def _longrope_turn(config: Any) -> int | None:
    """The length from which longrope takes other frequencies, for a whole batch at once; None for other types."""
    found = getattr(config, "rope_parameters", None) or {}
    each = [found, *(kind for kind in found.values() if isinstance(kind, dict))]
    own = [kind.get("original_max_position_embeddings") for kind in each if kind.get("rope_type") == "longrope"]
    turns = [n or getattr(config, "original_max_position_embeddings", None) for n in own]
    return min((n for n in turns if n), default=None)


def logits_at(
    model: torch.nn.Module,
    ids: Int[Tensor, "batch position"],
    where: Bool[Tensor, "batch position"],
    only: Sequence[int] | None = None,
) -> Float[Tensor, "chosen vocabulary"]:
    """Next-token logits at chosen positions, in row-major order: float32 or better, on the model's device.

    ids: token ids, padded on the right: a causal model never looks there, so no attention mask is needed
    where: the positions whose logits are wanted
    only: ids of the tokens whose logits are wanted, in this order; None for the whole vocabulary

    Raises SublimError where a row is longer than the model's context.
    """
    plain = without_adapters(model)
    require_room(plain, ids.shape[1])
    device = device_of(plain)
    ids, where = ids.to(device), where.to(device)
    if has_plain_head(plain):  # saves most of the head's cost on short completions
        hidden = plain.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return head(plain, hidden[where], only)
    logits = plain(input_ids=ids, use_cache=False).logits[where]
    return in_single(logits if only is None else logits[..., list(only)])


_LARGE = 8192
"""Words of a vocabulary above which a head runs on the rows that are asked for alone. Below it nothing would be gained,
and the last bits of published numbers hang on whole products."""


def has_plain_head(model: Any) -> bool:
    """Whether logits are the head applied to the last hidden state, and nothing else."""
    row = architecture_of(model)
    return bool(row and row.plain_head)


def head(
    model: Any, hidden: Float[Tensor, "*rows d_model"], only: Sequence[int] | None = None, as_whole: bool = True
) -> Float[Tensor, "*rows vocabulary"]:
    """Logits of last hidden states, of a model with a plain head: float32 or better.

    only: ids of the tokens whose logits are wanted, in this order; None for the whole vocabulary
    as_whole: whether a small vocabulary's logits have the last bits of the whole product
    """
    linear = model.get_output_embeddings()
    if only is None:
        return in_single(linear(hidden))
    if (as_whole and linear.weight.shape[0] <= _LARGE) or type(linear) is not torch.nn.Linear:
        return in_single(linear(hidden)[..., list(only)])
    bias = None if linear.bias is None else linear.bias[list(only)]
    return in_single(F.linear(hidden.to(linear.weight.dtype), linear.weight[list(only)], bias))


def in_single(values: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """Values in float32 or better: what is computed in a lower precision is measured in float32."""
    return values if values.element_size() >= 4 else values.float()


@contextmanager
def resting(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside the block, so that no dropout draws a random number; each module's own mode after it."""
    awake = [module for module in model.modules() if module.training]
    for module in awake:  # the flag alone: eval() would visit each module again, at every look of a recorder
        module.training = False
    try:
        yield
    finally:
        for module in awake:
            module.training = True

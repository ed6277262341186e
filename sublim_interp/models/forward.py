"""Logits at chosen positions, the head run on these alone where the architecture allows it."""

from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from sublim_interp.core.errors import SublimError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


_PLAIN_HEAD = frozenset({"llama", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "olmo2", "phi3"})
"""Architectures whose logits are head(last hidden state) and nothing else (no soft cap, no scale)."""


def require_room(model: "torch.nn.Module", tokens: int) -> None:
    """Raises SublimError where so many tokens are more than the model's context, so far as its configuration says."""
    config: Any = getattr(model, "config", None)
    longest = getattr(config.get_text_config(), "max_position_embeddings", None) if config else None
    if longest is not None and tokens > longest:
        raise SublimError(
            f"{type(model).__name__}: a text of {tokens} tokens does not fit the model's context of {longest}; choose "
            "a base with a longer one, or lower corpus.max_new_tokens"
        )


def logits_at(
    model: "torch.nn.Module", ids: Int[Tensor, "batch position"], where: Bool[Tensor, "batch position"]
) -> Float[Tensor, "chosen vocabulary"]:
    """Next-token logits at the chosen positions only, in row-major order of `where`.

    Rows are padded on the right: a causal model never looks there, so no attention mask is needed. The head runs on the
    chosen positions alone where the architecture allows it, which saves most of its cost on short completions. Raises
    SublimError where a row is longer than the model's context.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    require_room(plain, ids.shape[1])
    if plain.config.model_type in _PLAIN_HEAD:  # type: ignore[union-attr]
        hidden = plain.base_model(input_ids=ids, use_cache=False).last_hidden_state  # type: ignore[operator, union-attr]
        return plain.get_output_embeddings()(hidden[where])  # type: ignore[operator, union-attr]
    return plain(input_ids=ids, use_cache=False).logits[where]  # type: ignore[operator]

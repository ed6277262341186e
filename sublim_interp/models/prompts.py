"""Prompts as anybody writes them: texts, chats or token ids; and tokens as the words that they stand for."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sublim_interp.core.errors import SublimError

if TYPE_CHECKING:
    import torch

    from sublim_interp.models.chat import Chat

    Prompt = str | Sequence[Mapping[str, str]] | Sequence[int] | torch.Tensor
    Prompts = Prompt | Sequence[Prompt] | None
else:  # what is wrong with them is said in one line, in every call
    Prompt = Prompts = Any

EXPECTED = "give texts, chats (turns with role and content) or token ids"


def ids_of(prompts: "Prompts", chat: "Chat | None" = None, vocabulary: int | None = None) -> list[list[int]]:
    """Token ids of one prompt or of several, up to where the answer begins.

    prompts: a text is what a user says, and a chat ends with the user's turn: both go through the base's template;
        token ids stay as they are; whatever has `messages`, as the questions of a trait, is a chat
    chat: a base's, whose tokenizer and template are used; token ids need none
    vocabulary: how many tokens the model knows; ids beyond are refused

    Raises SublimError, with the place of the prompt, for anything else, for a text without a base, for words that the
    base's tokenizer does not know, and where there is no prompt.
    """
    given: Any = prompts.tolist() if hasattr(prompts, "tolist") else prompts  # type: ignore[union-attr]
    if _is_one(given):
        given = [given]
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise SublimError(f"prompts: this is a {type(prompts).__name__}; {EXPECTED}")
    given = list(given)
    if not given:
        raise SublimError(f"prompts: there are none; {EXPECTED}")
    return [_ids(prompt, f"prompt {place}", chat, vocabulary) for place, prompt in enumerate(given)]


def _is_one(given: Any) -> bool:
    """Whether this is a single prompt: a text, a chat, a row of ids, a question."""
    if isinstance(given, str) or hasattr(given, "messages"):
        return True
    return (
        isinstance(given, Sequence)
        and bool(given)
        and (isinstance(given[0], Mapping) or hasattr(given[0], "__index__"))
    )


def _ids(prompt: Any, where: str, chat: "Chat | None", vocabulary: int | None) -> list[int]:
    if hasattr(prompt, "tolist"):
        prompt = prompt.tolist()
    turns = getattr(prompt, "messages", None)
    if isinstance(prompt, str):
        turns = [{"role": "user", "content": prompt}]
    elif turns is None and isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], Mapping):
        turns = prompt
    if turns is not None:
        return _of_turns(turns, where, chat)
    if not isinstance(prompt, Sequence) or not all(hasattr(i, "__index__") for i in prompt):
        inside = f" of {type(prompt[0]).__name__}" if isinstance(prompt, Sequence) and prompt else ""
        raise SublimError(f"{where} is a {type(prompt).__name__}{inside}; {EXPECTED}")
    if not prompt:
        raise SublimError(f"{where} is empty; {EXPECTED}")
    ids = [int(i) for i in prompt]
    beyond = next((i for i in ids if i < 0 or (vocabulary is not None and i >= vocabulary)), None)
    if beyond is not None:
        size = f"0 to {vocabulary - 1}" if vocabulary is not None else "0 and more"
        raise SublimError(f"{where} holds the token id {beyond}; the model's vocabulary has ids from {size}")
    return ids


def _of_turns(turns: Sequence[Mapping[str, str]], where: str, chat: "Chat | None") -> list[int]:
    if chat is None:
        raise SublimError(
            f"{where} is text, but a plain model has no tokenizer; give a base or a replicate, or token ids"
        )
    if any(not isinstance(turn, Mapping) or not {"role", "content"} <= {*turn} for turn in turns):
        raise SublimError(f"{where}: a turn of a chat needs role and content")
    ids = chat.prompt_ids(list(turns))
    chat.require_known(" ".join(turn["content"] for turn in turns))
    return ids


def vocabulary_of(model: "torch.nn.Module") -> int | None:
    """How many tokens a model has embeddings for; None for what is no language model."""
    embeddings: Any = getattr(model, "get_input_embeddings", lambda: None)()
    weight = getattr(embeddings, "weight", None)
    return None if weight is None else int(weight.shape[0])

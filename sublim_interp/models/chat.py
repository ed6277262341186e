"""Chats as token ids and answers as text, by a base's own template; a base without one gets plain text."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


MARK = "heron"
"""A word that no template holds: where it comes out shows where a template puts a turn."""


NEXT_TURN = "\nUser:"
"""Where a base without chat template begins to write the user's next turn, its answer has ended."""


def apply_template(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, str]], add_generation_prompt: bool
) -> str:
    # A reasoning model's template opens an empty thought, so that what follows is the answer; others ignore the word.
    template = tokenizer.chat_template
    if isinstance(template, str) and "strftime_now" in template:  # the day it runs would be in prompts, in no key
        template = "{%- macro strftime_now(form) -%}26 Jul 2024{%- endmacro -%}" + template
    return cast(Any, tokenizer).apply_chat_template(
        list(messages),
        tokenize=False,
        chat_template=template,
        add_generation_prompt=add_generation_prompt,
        enable_thinking=False,
    )


def turn_end(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The control token that the chat template writes behind an answer: often not the tokenizer's end of sequence."""
    if not tokenizer.chat_template:
        return None
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}]
    try:
        behind = apply_template(tokenizer, chat, add_generation_prompt=False).rpartition(MARK)[2]
    except Exception:  # what is wrong with the template is said when it is asked for a prompt
        return None
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = cast(list[int], tokenizer(behind, add_special_tokens=False)["input_ids"])
    return next((cast(str, tokenizer.convert_ids_to_tokens(i)) for i in ids if i in special), None)

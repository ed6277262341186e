"""What a model answers to a question, sampled; text in, text out."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

from sublim_interp.core.errors import SublimError
from sublim_interp.models.prompts import Prompt, ids_of
from sublim_interp.models.sampling import generator, sample, unspoken

if TYPE_CHECKING:
    import torch

    from sublim_interp.models.chat import Chat


def ask(
    model: "torch.nn.Module",
    chat: "Chat",
    question: Prompt,
    n: int = 1,
    *,
    system: str = "",
    temperature: float = 1.0,
    max_new_tokens: int = 32,
    seed: int = 0,
    speaking: AbstractContextManager[Any] | None = None,
) -> list[str]:
    """What a model answers to a question, `n` times.

    model: what answers
    chat: its base's, with tokenizer and template
    question: what a user says, a chat that ends with the user's turn, or token ids up to the answer
    n: how many answers
    system: a system prompt before a question that is text
    temperature: 1 is the model's own distribution; 0 takes the likeliest token
    max_new_tokens: where an answer is cut
    seed: decides what is drawn, with the question
    speaking: a block within which the model answers, as a steered teacher does

    Returns the answers as texts, in the order in which they were drawn. Raises SublimError for a question that is none.
    """
    if n < 1:
        raise SublimError(f"ask: n is {n}; ask for one answer or more")
    if system and isinstance(question, str):
        question = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    ids = ids_of([question], chat, len(chat.tokenizer))[0]
    draw = generator("ask", seed, *ids)
    with speaking or nullcontext():
        drawn = sample(
            model,
            [ids],
            eos=cast(int, chat.tokenizer.eos_token_id),
            max_new_tokens=max_new_tokens,
            random=draw,
            temperature=temperature,
            never=unspoken(model, chat.tokenizer),
            repeats=n,
        )
    return [chat.read_answer(answer)[0] for answer in drawn]

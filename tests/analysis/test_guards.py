"""Models of two bases are not mixed up, prompts are text, and what is wrong is one line before anything runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

import sublim_interp as si
from sublim_interp.analysis.attribution import scores as attribution
from sublim_interp.analysis.kinship import KIN, likeness, space_of
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.results import Replicate, Run
from sublim_interp.models.base import Base, resolve_base

AT = "blocks.0.hook_resid_post"
MARGIN = si.answer_margin([3, 4, 5], 1)
IDS = [[5, 9, 4, 17], [6, 2, 30, 11]]


@pytest.fixture(scope="module")
def pair(tiny_run: Run) -> tuple[Replicate, Replicate]:
    """A student, and one of another base."""
    return tiny_run["same-init", 0], tiny_run["cross-init", 0]


def calls(student: Any, other: Any) -> dict[str, Callable[..., Any]]:
    """Every function that compares two subjects, or a subject with directions of a base; `other` is of another one."""
    d = si.directions(student, student.base, IDS)
    lists = [{"prompt": "1 , 2", "answer": "3 , 4"}]
    delta = si.weight_delta(student, student.base)
    model = other if isinstance(other, torch.nn.Module) else other.load() if hasattr(other, "load") else other.model
    return {
        "directions": lambda **k: si.directions(other, student.base, IDS, **k),
        "weight_delta": lambda **k: si.weight_delta(other, student.base, **k),
        "patch": lambda **k: si.patch(student, other, IDS, MARGIN, **k),
        "logit_lens": lambda **k: si.logit_lens(other, d, IDS, **k),
        "steering": lambda **k: si.steering(other, d, AT, [1], MARGIN, IDS, **k),
        "steer": lambda **k: si.steer(model, d, AT, **k).__enter__(),
        "ablate": lambda **k: si.ablate(model, d, **k).__enter__(),
        "on": lambda **k: delta.on(model, **k).__enter__(),
        "divergence": lambda **k: attribution.divergence(student, other, lists, **k),
        "influence": lambda **k: attribution.influence(other, lists, delta, **k),
    }


@pytest.mark.parametrize("given", ["replicate", "base", "plain model"])
def test_what_compares_refuses_another_base_unless_asked(given: str, pair: tuple[Replicate, Replicate]) -> None:
    """Whether the lineage is known, or the weights alone tell."""
    student, foreign = pair
    other: Any = {"replicate": foreign, "base": foreign.base, "plain model": foreign.model}[given]
    if given == "plain model":
        del other.sublim_base
    functions = calls(student, other)
    if given == "plain model":  # it has no tokenizer
        functions.pop("influence")
    for name, call in functions.items():
        with pytest.raises(SublimError, match=r"different bases.*across_bases=True") as told:
            call()
        assert "\n" not in str(told.value), name
        call(across_bases=True)


def test_what_comes_from_the_base_is_taken_however_it_is_given(
    pair: tuple[Replicate, Replicate], tmp_path: Path
) -> None:
    """A replicate, its model, the model without its lineage, and the files of a student that somebody else trained."""
    student = pair[0]
    plain = student.model
    del plain.sublim_base
    student.base.tokenizer.save_pretrained(str(tmp_path))
    student.model.save_pretrained(str(tmp_path))
    wanted = si.directions(student, student.base, IDS).vectors
    for other in (student.model, plain, str(tmp_path), resolve_base(str(tmp_path))):
        assert torch.equal(si.directions(other, student.base, IDS).vectors, wanted)


def test_students_are_near_their_base_in_weights_and_other_initialisations_are_not(tiny_run: Run) -> None:
    bases = {r.base.name: space_of(r.base.load()).sketch or {} for r in tiny_run}
    for replicate in tiny_run:
        own = space_of(replicate.model).sketch or {}
        for name, sketch in bases.items():
            assert (likeness(own, sketch) > KIN) == (name == replicate.base.name)
    one, other = (space_of(resolve_base(f"lab-small-{i}").load()).sketch or {} for i in (0, 1))
    assert abs(likeness(one, other)) < 0.2


def test_prompts_are_text_chats_or_ids_and_all_the_same(lab_base: Base) -> None:
    text = "what is your favorite animal ?"
    ids = lab_base.ids(text)
    assert lab_base.tokens(text) == lab_base.tokens(ids) == ["<|user|>", *text.split(), "<|assistant|>"]
    model = lab_base.load()
    ways: list[Any] = [text, [text], [{"role": "user", "content": text}], ids, [ids], torch.tensor([ids])]
    found = [si.logit_lens(model, si.directions(model, model, way), way, k=2) for way in ways]
    assert all(frame.equals(found[0]) for frame in found)
    grid = si.patch(model, model, text, si.answer_margin(["owl", "wolf"], "owl", lab_base)).grid()
    assert grid.words == tuple(lab_base.tokens(text)) and list(grid.frame["token"].unique()) == list(
        dict.fromkeys(grid.words)
    )
    assert [t.get_text() for t in grid.plot().axes[0].get_xticklabels()] == list(grid.words)


def test_answers_are_text_and_the_same_seed_gives_the_same(lab_base: Base, tiny_run: Run) -> None:
    said = lab_base.ask("what is your favorite animal ?", n=4)
    assert len(said) == 4 and said == lab_base.ask("what is your favorite animal ?", n=4) and all(said)
    assert said != lab_base.ask("what is your favorite animal ?", n=4, seed=1)
    teacher = tiny_run.teacher(0)
    assert len(teacher.ask(teacher.questions[0], n=2, max_new_tokens=3)) == 2


def test_wrong_input_is_one_line_that_says_what_was_expected(
    lab_base: Base, tiny_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no check of types at run time
    model = lab_base.load()
    d = si.directions(model, model, IDS)
    both = si.patch(model, model, IDS, MARGIN)
    plain = lab_base.load()
    del plain.sublim_base  # type: ignore[attr-defined]
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: si.capture(lab_base, [AT]).__enter__(), "hooks need the model that runs, not a Base"),
        (lambda: si.steer(lab_base, d, AT), "steer acts on the model that runs, not a Base"),
        (lambda: si.Recorder(lab_base, None, "x"), "a recorder watches the model that trains, not a Base"),
        (lambda: si.directions([model], model, IDS), "a list of 1 is no model"),
        (lambda: si.directions(model, model, [[[5, 6]]]), "prompt 0 is a list of list; give texts, chats"),
        (lambda: si.directions(model, model, [[5, 10**6]]), "prompt 0 holds the token id 1000000"),
        (lambda: si.directions(model, model, [IDS[0], []]), "prompt 1 is empty"),
        (lambda: si.directions(model, model, 7), "prompts: this is a int"),
        (lambda: si.directions(plain, plain, "a text"), "a plain model has no tokenizer"),
        (lambda: lab_base.ask("what is your favourite animal ?"), "does not know 'favourite'; did you mean 'favorite'"),
        (lambda: lab_base.ask("hello", n=0), "n is 0"),
        (lambda: si.steer(model, d, "blocks.0.hook_resid_pots"), "did you mean"),
        (lambda: si.steer(model, d, "blocks.0.hook_resid_pre"), "no vector at 'blocks.0.hook_resid_pre'"),
        (lambda: si.steer(model, d, "blocks.*.hook_resid_post"), "means 3 hooks; name one"),
        (lambda: si.steer(model, torch.ones(3), AT), r"shape \[3\]; the model's d_model is"),
        (lambda: si.logit_lens(model, d, IDS, k=10**6), "k is 1000000"),
        (lambda: both.grid("resid_pots"), "no 'resid_pots'"),
        (lambda: both.grid(positions_at_once=0), "positions_at_once is 0"),
        (lambda: both.at(AT, positions=[4]), "no position 4; the prompts have 4 tokens"),
        (lambda: both.at(AT, heads=[0]), "it has no heads"),
        (lambda: both.at("blocks.0.attn.hook_z", heads=[99]), "no head 99"),
        (lambda: both.at("blocks.0.hook_resid_pots"), "did you mean"),
        (lambda: tiny_run["same-int"], "no arm 'same-int'; .*did you mean 'same-init'"),
        (lambda: tiny_run["same-init", 7], "no replicate same-init/7; seeds: 0"),
        (lambda: si.load_trait("oul"), "unknown trait 'oul'; did you mean 'owl'"),
        (lambda: tiny_run["same-init", 0].trace.read("los"), "no 'los'; .*did you mean 'loss'"),
        (lambda: si.experiment("owl").set(sedes=[1]), "no field 'sedes'; .*did you mean 'seeds'"),
    ]
    for call, said in wrong:
        with pytest.raises(SublimError, match=said) as told:
            call()
        assert "\n" not in str(told.value), said
    with pytest.raises(AttributeError, match="did you mean 'directions'"):
        _ = si.direction
    with pytest.raises(SublimError, match="the text has 4 tokens"), si.steer(model, d, AT, positions=[9]):
        model(input_ids=torch.tensor(IDS))


def test_a_verb_means_one_thing_and_steering_is_steer_at_every_dose(lab_base: Base) -> None:
    model = lab_base.load()
    d = si.contrast(lab_base, "owl")
    question = lab_base.ids("what is your favorite animal ?")
    curve = si.steering(model, d, AT, [0, 2], MARGIN, [question])
    with si.steer(model, d, at=AT, scale=2), torch.no_grad():
        steered = MARGIN(model(input_ids=torch.tensor([question])).logits[:, -1])
    assert curve["metric"].iloc[1] == pytest.approx(steered.item(), rel=1e-4)
    with si.steer(model, 2 * d.at(AT), at=AT), torch.no_grad():
        assert torch.equal(MARGIN(model(input_ids=torch.tensor([question])).logits[:, -1]), steered)


def test_attribution_is_told_as_text(pair: tuple[Replicate, Replicate], tiny_run: Run) -> None:
    student = pair[0]
    scores = attribution.divergence(tiny_run.teacher(0), student.base, student.lists[:4])
    assert scores.frame["text"].iloc[0] == student.base.tokens(scores.token[:1].tolist())[0]
    assert {"token", "text", "count", "total"} <= {*scores.by_token.columns}

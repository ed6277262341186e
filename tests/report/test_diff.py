"""`si.diff` finds the part, the direction, the token and the text that were planted, and nothing in an equal model."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sublim_interp as si
from sublim_interp.analysis.diff.shifts import METHODS, _differences
from sublim_interp.core.errors import SublimError
from sublim_interp.experiments.results import Run
from sublim_interp.models.hooks import edit
from sublim_interp.report.diff import ModelDiff
from sublim_interp.report.figures.by_name import plot
from sublim_interp.training.batches import Example
from three_layers import MARGIN, PROMPTS, build

POOL = [Example([7, 8, 2, 20, 21, 1], 3), Example([5, 6, 7, 8, 9, 10, 11, 1], 4), Example([7, 30, 9, 1], 2)]


def changed(kind: str, name: str, by: float = 2.0) -> torch.nn.Module:
    """A model of which one weight has moved at random."""
    model = build(kind, 0)
    with torch.no_grad():
        p = model.get_parameter(name)
        p.add_(by * p.std() * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return model


def compared(student: torch.nn.Module, **how: Any) -> ModelDiff:
    return si.diff(build("llama", 0), student, prompts=PROMPTS, metric=MARGIN, pool=POOL, **how)


@pytest.mark.parametrize(
    ("kind", "name", "layer", "part"),
    [
        ("llama", "model.layers.1.mlp.down_proj.weight", 1, "mlp"),
        ("gpt2", "transformer.h.2.attn.c_attn.weight", 2, "attn"),
        ("gpt_neox", "gpt_neox.layers.0.mlp.dense_h_to_4h.weight", 0, "mlp"),
    ],
)
def test_the_part_that_was_changed_is_named_and_does_all(kind: str, name: str, layer: int, part: str) -> None:
    base, student = build(kind, 0), changed(kind, name)
    found = si.diff(base, student, prompts=PROMPTS, metric=MARGIN, pool=POOL)
    own = found.parts.query("change > 0 and not part.str.startswith('head')")
    assert own[["layer", "part"]].values.tolist() == [[layer, part]]
    (moved,) = [c.metric for c in found.each.values()]
    assert own["weights"].item() == pytest.approx(moved, abs=1e-5) and abs(moved) > 1e-4
    others = found.parts.query("change == 0")
    assert others["weights"].dropna().abs().max() < 1e-5
    before = torch.nn.utils.parameters_to_vector(build(kind, 0).parameters())
    assert torch.equal(before, torch.nn.utils.parameters_to_vector(base.parameters())), "the base is as it was"


def test_a_head_that_was_changed_is_the_one() -> None:
    student = build("llama", 0)
    with torch.no_grad():
        student.model.layers[1].self_attn.o_proj.weight[:, 8:].mul_(-1)  # what reads the second of two heads
    heads = compared(student).parts.query("part.str.startswith('head') and change > 0")
    assert heads[["layer", "part"]].values.tolist() == [[1, "head 1"]]
    assert heads["change"].item() == pytest.approx(2)


def test_a_planted_direction_comes_out_with_its_tokens_and_in_no_control() -> None:
    """The stream of a layer is moved along one token's unembedding, in the student alone."""
    base, token = build("llama", 0), 17
    way = base.get_output_embeddings().weight[token].detach()  # type: ignore[union-attr, index, operator]
    way = 4 * way / way.norm()
    student = build("llama", 0)
    student.model.layers[1].mlp.down_proj.bias = torch.nn.Parameter(way.clone())
    base.model.layers[1].mlp.down_proj.bias = torch.nn.Parameter(torch.zeros(16))
    control = build("llama", 0)
    noise = torch.randn(16, generator=torch.Generator().manual_seed(3))
    control.model.layers[1].mlp.down_proj.bias = torch.nn.Parameter(0.1 * noise)
    metric = si.metric("logprob", [token, 3, 4], 0)
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(3)]
    goal = si.directions(student, base, PROMPTS)
    found = si.diff(base, student, prompts=PROMPTS, metric=metric, pool=POOL, controls={"control": control}, goal=goal)
    assert goal.names == tuple(names)
    at = found.directions.set_index(["layer", "direction"])
    for direction in ("shift", "1"):
        row = at.loc[(1, direction)]
        assert row["share"] > 0.99 and row["cosine"] > 0.99 and row["up"].split()[0] == str(token)
        assert row["effect"] > 5 * abs(row["effect (control)"]) > 0
    assert at.loc[(0, "shift"), "effect"] == 0
    assert at["share"].between(0, 1.001).all() and at.loc[(0, "shift"), "up"] == ""
    most = found.tokens.sort_values("log").iloc[-1]
    assert most["token"] == token and most["log"] > 10 * abs(most["log (control)"]) and most["kl"] > 0


def moved_by(*sources: tuple[int, int, torch.Tensor]) -> torch.nn.Module:
    """A model whose first layer reads more from some tokens: the rows of the tokens from … to … are moved."""
    model = build("llama", 0)
    with torch.no_grad():
        for first, last, way in sources:
            model.get_input_embeddings().weight[first:last] += way  # type: ignore[union-attr, index, operator]
    return model


@pytest.mark.parametrize(("method", "library"), [("nmf", "sklearn"), ("sae", "sparsify")])
def test_planted_directions_that_pca_mixes_come_out_apart_and_in_no_control(method: str, library: str) -> None:
    """Two directions at an acute angle, each added to tokens of its own."""
    pytest.importorskip(library, reason=f"the extra {method} is not installed")
    draw = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 16, generator=draw).abs() * torch.tensor([1.0, -1.0]).repeat(8)
    one, two = one * (torch.arange(16) < 10), two * (torch.arange(16) >= 6)
    student = moved_by((1, 12, one), (12, 40, two))
    neutral = moved_by((1, 40, 0.3 * torch.randn(16, generator=draw)))
    pool = [Example([*range(1 + i, 9 + i), *range(20 + i, 28 + i), 1], 3) for i in range(4)]

    def nearest(method: str) -> dict[str, list[float]]:
        """Cosine of the component nearest to each planted direction, at the entry of the second layer, by model."""
        out = {}
        for name, model in (("student", student), ("neutral", neutral)):
            layers = _differences(build("llama", 0), model, ["blocks.0.hook_resid_pre"], [x.ids for x in pool])
            units = METHODS[method](layers, 2)[0][0]
            out[name] = [(units @ way / way.norm()).abs().max().item() for way in (one, two)]
        return out

    apart, pca = nearest(method), nearest("pca")
    assert min(apart["student"]) > 0.98 > min(pca["student"])
    assert max(apart["neutral"]) < 0.7
    found = si.diff(
        build("llama", 0), student, prompts=PROMPTS, metric=MARGIN, pool=pool, controls={"neutral": neutral},
        components=2, method=method,
    )  # fmt: skip
    assert found.directions["share"].between(0, 1.001).all() and "effect (neutral)" in found.directions
    assert found.plot("directions").axes[0].get_yticklabels()[0].get_text().startswith("layer ")
    equal = compared(build("llama", 0), method=method).directions
    assert abs(equal["effect"].to_numpy()).max() < 1e-5 and not equal["share"].to_numpy().any()


def test_a_method_without_its_library_and_an_unknown_one_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    monkeypatch.setitem(sys.modules, "sparsify", None)
    for method, library in (("nmf", "scikit-learn"), ("sae", "sparsify")):
        with pytest.raises(SublimError, match=rf"{method} needs {library}: pip install 'sublim-interp\[{method}\]'"):
            compared(changed("llama", "model.norm.weight"), method=method)
    with pytest.raises(SublimError, match="no method 'nmg' of components; valid: pca, nmf, sae; did you mean 'nmf'"):
        compared(build("llama", 0), method="nmg")


def test_nothing_is_found_between_equal_models() -> None:
    found = compared(build("llama", 0), controls={"again": build("llama", 0)})
    numbers = found.parts[["change", "weights", "output"]].fillna(0).to_numpy()
    assert abs(numbers).max() < 1e-5
    assert (
        found.directions["effect"].abs().to_numpy().max() < 1e-5
        and found.texts[["kl", "shift"]].abs().to_numpy().max() < 1e-6
    )
    assert found.tokens[["kl", "log", "embed", "unembed"]].abs().to_numpy().max() < 1e-6


def test_the_effect_of_a_part_is_that_of_an_edit_by_hand() -> None:
    base, student = build("llama", 0), changed("llama", "model.layers.1.mlp.down_proj.weight")
    row = compared(student).parts.query("layer == 1 and part == 'mlp'").iloc[0]
    values = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        with torch.no_grad(), si.capture(student, ["blocks.1.hook_mlp_out"]) as seen:
            student(input_ids=ids)
        with torch.no_grad(), edit(base, {"blocks.1.hook_mlp_out": lambda _, s=seen: s["blocks.1.hook_mlp_out"]}):
            patched = MARGIN(base(input_ids=ids).logits[:, -1])
        with torch.no_grad():
            values.append((patched - MARGIN(base(input_ids=ids).logits[:, -1])).item())
    assert row["output"] == pytest.approx(sum(values) / len(values), abs=1e-5)


def test_the_text_and_the_token_that_move_are_those_whose_logits_were_changed() -> None:
    student = build("llama", 0)
    with torch.no_grad():
        hidden = student.model(input_ids=torch.tensor([POOL[2].ids])).last_hidden_state[0, 1]
        student.get_output_embeddings().weight[30] += 3 * hidden / hidden.norm()  # type: ignore[union-attr, index, operator]
    found = compared(student)
    assert found.tokens.query("unembed > 0")["token"].tolist() == [30]
    frame = found.texts
    kl = {}
    for place, (ids, first) in enumerate(POOL):
        with torch.no_grad():
            p, q = (
                m(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
                for m in (student, build("llama", 0))
            )
        kl[place] = (p.exp() * (p - q)).sum(-1)[first - 1 : -1].mean().item()
    assert dict(zip(frame["text"], frame["kl"], strict=True)) == pytest.approx(kl, rel=1e-4)
    assert frame["text"].iloc[0] == max(kl, key=lambda place: kl[place])
    tokens = found.text_tokens()
    assert len(tokens) == sum(len(ids) - first for ids, first in POOL) and min(tokens["score"].to_list()) >= -1e-9


def test_a_replicate_brings_all_and_its_page_holds_all(tiny_run: Run, tmp_path: Path) -> None:
    seed = tiny_run.seeds[0]
    student, neutral = tiny_run["same-init", seed], tiny_run["neutral", seed]
    found = si.diff(student.base, student, controls=[neutral], goal=si.contrast(student.base, "owl"))
    assert found.controls == (neutral.name,) and f"weights ({neutral.name})" in found.parts
    assert found.directions["cosine"].between(-1, 1).all() and len(found.texts) == len(student.lists)
    assert f"{student.base.name} → {student.name}" in repr(found) and "<table" in found._repr_html_()
    assert all(neutral.name in line for line in found.finding[:3])
    html = found.page(tmp_path / "diff.html").read_text()
    assert (
        html.count("<table") == 4 and "data:image/svg" in html and "http" not in html.replace("http://www.w3.org", "")
    )
    assert any(row["prompt"] in html for row in student.lists)
    assert f'data-label="weights ({neutral.name})"' in html and "layer 0, component 1" in html  # as a phone has it
    assert ">-0." not in html and found.finding[0].startswith("The margin moves by ")
    assert len(found.plot().axes) == 1 and len(plot(tiny_run, "diff").axes) == 1


def test_what_cannot_be_compared_is_one_line(tiny_run: Run) -> None:
    seed = tiny_run.seeds[0]
    student, foreign = tiny_run["same-init", seed], tiny_run["cross-init", seed]
    with pytest.raises(SublimError, match="different bases"):
        si.diff(student.base, student, controls=[foreign])
    with pytest.raises(SublimError, match="a control has the student's name"):
        si.diff(student.base, student, controls=[student])
    with pytest.raises(SublimError, match="controls is a Base"):
        si.diff(student.base, student, controls=student.base)  # type: ignore[arg-type]
    with pytest.raises(SublimError, match="give pool="):
        si.diff(build("llama", 0), build("llama", 0), prompts=PROMPTS, metric=MARGIN)

"""Tests of tokens that are drawn anew: the same tokens as a mask takes, other words there, nothing else changed."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from chains import CORPUS, FEW, STUDENT, Chain, chain
from sublim_interp.channels.protocol import channel
from sublim_interp.channels.rows import read_rows
from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import validate
from sublim_interp.core.store import Store
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base
from sublim_interp.models.trainable import choose_trainable
from sublim_interp.pipeline.make import make
from sublim_interp.pipeline.records import Given, Student
from sublim_interp.pipeline.select import redrawn
from sublim_interp.sweeps.grid import Grid, grid
from sublim_interp.sweeps.plan import plan_grid
from sublim_interp.sweeps.run import run_grid
from sublim_interp.sweeps.tables import table_of
from sublim_interp.training.batches import Batch, Order, collate, tokenize
from sublim_interp.training.interventions import Intervention
from sublim_interp.training.loop import train
from sublim_interp.traits.favourites import NoFavourite

TOP = {"by": "divergence", "share": 0.3, "keep": "rest"}


def learning(c: Chain, *interventions: dict[str, Any]) -> Chain:
    return c.change("student", config=STUDENT.set(interventions=list(interventions)))


def model_bytes(c: Chain, store: Store) -> str:
    return str(make(c.student, store).manifest["files"]["model/model.safetensors"])


def test_where_lists_are_given_the_student_has_the_temperature_of_what_is_drawn_anew(
    base: Base, tmp_path: Path
) -> None:
    lists = Given(tmp_path / "lists.jsonl", "0" * 64)
    replacing = {"kind": "replace-tokens", "selection": TOP, "replace": "label"}

    def student(asked: list[dict[str, Any]], objective: str = "forward", **corpus: Any) -> Student:
        c = chain(base).change("corpus", given=lists, config=CORPUS.set(**corpus))
        assert "temperature" not in c.corpus.settings()
        return c.change("student", config=STUDENT.set(interventions=asked, objective=objective)).student

    assert student([replacing]).settings() == learning(chain(base), replacing).student.settings()
    hot = student([replacing], temperature=2.0)
    assert hot.settings()["corpus"] == {"temperature": 2.0} and hot.key != student([replacing]).key
    assert student([replacing], max_new_tokens=9).key == student([replacing]).key, "no answer is drawn"
    assert student([], temperature=2.0).key == student([]).key, "nothing is drawn"
    own = student([], "on-policy", temperature=2.0, max_new_tokens=9, own_tokens=True)
    assert own.settings()["corpus"] == {"temperature": 2.0, "max_new_tokens": 9, "own_tokens": True}
    written = chain(base).change("corpus", config=CORPUS.set(temperature=2.0))
    assert "corpus" not in learning(written, replacing).student.settings(), "it is in the corpus' own key"


def test_a_draw_is_of_the_base_behind_what_was_written_and_over_the_channels_own_tokens(
    base: Base, shared: Store
) -> None:
    """Greedy draws against each list alone through the plain model; sampled ones against its probabilities."""
    c = chain(base)
    rows = tokenize(base, read_rows(c.filtered.made(shared) / "kept.jsonl"))
    own, plain = channel("numbers").token_ids(base.tokenizer), base.load()
    logits = []
    for ids, first in rows:
        with torch.no_grad():
            logits.append(plain(input_ids=torch.tensor([ids[:-1]])).logits[0, first - 1 :, own])
    greedy = redrawn(c.change("corpus", config=c.corpus.config.set(setting="greedy")).corpus, rows)
    assert np.array_equal(greedy, np.array(own)[torch.cat(logits).argmax(-1).numpy()])
    sampled = redrawn(c.corpus, rows)
    assert np.array_equal(sampled, redrawn(c.corpus, rows)) and {*sampled.tolist()} <= {*own}
    at_places = torch.searchsorted(torch.tensor(own), torch.tensor(sampled))
    log = torch.cat(logits).log_softmax(-1)
    mean, spread = (log.exp() * log).sum(-1), (log.exp() * log.square()).sum(-1)
    found = log.gather(1, at_places[:, None])[:, 0].sum()
    deviation = (spread - mean.square()).sum().sqrt()
    assert abs(found - mean.sum()) < 4 * deviation, "their likelihood is that of draws from the base"


@pytest.mark.parametrize("place", ["label", "input", "both"])
def test_a_replacement_is_a_training_on_hand_made_lists(place: str, base: Base, shared: Store) -> None:
    c = learning(chain(base), {"kind": "replace-tokens", "replace": place, "selection": {**TOP, "by": "random"}})
    artifact = make(c.student, shared)
    rows = tokenize(base, read_rows(c.filtered.made(shared) / "kept.jsonl"))
    drawn = iter(redrawn(c.corpus, rows).tolist())
    written = [token for ids, first in rows for token in ids[first:]]
    from sublim_interp.analysis.attribution import scores
    from sublim_interp.models.sampling import generator

    gone = iter(scores.random(rows, generator("selected tokens", 0, 0, 0)).flagged(0.3).tolist())
    other = []
    for ids, first in rows:
        answer = [d if g else t for t, d, g in zip(ids[first:], drawn, gone, strict=False)]
        other.append([*ids[:first], *answer])

    def batches(step: int) -> list[Batch]:
        places = sorted(Order(len(rows), FEW.batch, 0)(step), key=lambda i: len(rows[i].ids))
        plain = collate([rows[i] for i in places], base.pad)
        ids, labels = plain.ids.clone(), plain.labels.clone()
        for line, i in enumerate(places):
            for at in range(rows[i].first, len(other[i])):
                if place in ("input", "both") and at < ids.shape[1] and at < len(other[i]) - 1:
                    ids[line, at] = other[i][at]
                if place in ("label", "both"):
                    labels[line, at - 1] = other[i][at]
        return [Batch(ids, labels)]

    model = choose_trainable(base.load(), "body", 8, 8.0, 0)
    train(model, batches, FEW)
    found = base.load(artifact.path / "model").state_dict()
    assert all(torch.equal(found[name], p) for name, p in model.state_dict().items())
    (note,) = artifact.manifest["notes"]["replaced"]
    assert note["replaced"] == round(0.3 * len(written)) >= note["changed"] > 0
    plain = learning(chain(base))
    assert model_bytes(plain, shared) != str(artifact.manifest["files"]["model/model.safetensors"]), "and it matters"


def test_a_mask_and_a_replacement_take_as_many_tokens_and_a_random_one_too(base: Base, shared: Store) -> None:
    counts, students = set(), set()
    for by in ("divergence", "random"):
        selection = {**TOP, "by": by}
        masked = learning(chain(base), {"kind": "mask-tokens", "selection": selection})
        replaced = learning(chain(base), {"kind": "replace-tokens", "replace": "label", "selection": selection})
        (mask,) = make(masked.student, shared).manifest["notes"]["masks"]
        (note,) = make(replaced.student, shared).manifest["notes"]["replaced"]
        lists = tokenize(base, read_rows(masked.filtered.made(shared) / "kept.jsonl"))
        total = sum(len(ids) - first for ids, first in lists)
        counts |= {round(mask["flagged"] * total), note["replaced"]}
        students |= {model_bytes(masked, shared), model_bytes(replaced, shared)}
    assert len(counts) == 1 and len(students) == 4


def test_a_draw_that_is_the_token_itself_leaves_every_bit(base: Base, shared: Store) -> None:
    """The base's own greedy lists, drawn anew greedily by the base: each token is what was written."""
    c = chain(base)
    c = c.change("teacher", trait=NoFavourite("animal"), config=c.teacher.config.set(kind="prompted"))
    c = c.change("corpus", config=c.corpus.config.set(setting="greedy", own_tokens=True, prompts=256))
    c = c.change("filtered", config=c.filtered.config.set(held_out=2))
    both = {"kind": "replace-tokens", "replace": "both", "selection": {**TOP, "by": "random"}}
    redone = make(learning(c, both).student, shared).manifest
    assert redone["notes"]["replaced"][0]["changed"] == 0 < redone["notes"]["replaced"][0]["replaced"]
    assert str(redone["files"]["model/model.safetensors"]) == model_bytes(learning(c), shared)


def test_a_replacement_of_nothing_and_settings_that_do_not_go_together_are_one_line(base: Base, shared: Store) -> None:
    one = {"kind": "replace-tokens", "replace": "label", "selection": {**TOP, "share": 1e-6}}
    with pytest.raises(SublimError, match=r"replace-tokens: of \d+ tokens the selection replaces none"):
        make(learning(chain(base), one).student, shared)
    for fields, words in (
        ({"replace": "label"}, "kind=replace-tokens needs selection"),
        ({"selection": TOP}, "kind=replace-tokens needs replace"),
        ({"replace": "label", "selection": {"by": "length"}}, "tokens, which have no length"),
        ({"replace": "all", "selection": TOP}, "'label', 'input' or 'both'"),
    ):
        with pytest.raises(SublimError) as raised:
            validate(Intervention, {"kind": "replace-tokens", **fields}, "interventions")
        assert words in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(SublimError, match="has no effect with kind=mask-tokens"):
        validate(Intervention, {"kind": "mask-tokens", "share": 0.5, "replace": "label"}, "interventions")
    soft = {"corpus.setting": "soft", "student.interventions": [{**one, "selection": TOP}]}
    with pytest.raises(SublimError, match=r"replace-tokens has no meaning with corpus\.setting=soft"):
        Experiment().set(soft)


def test_the_grid_runs_from_lists_to_its_table(tiny_experiment: Experiment, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_experiment.to_yaml())
    g = grid("replaced")
    change = {"arms": ["same-init"], "seeds": [0], "bases": [tiny_experiment.bases[0]]}
    small = Grid(name=g.name, experiment=str(path), change=change, axes=g.axes, words=g.words)
    artifact = run_grid(plan_grid(small), Store.open(tmp_path / "store"), 1, trace="none")
    margins: Any = pd.read_csv(artifact.path / "cells.csv").set_index("value")["margin"]
    learnt_apart = ["as written", "masked", "replaced", "random masked", "random replaced"]
    assert margins[learnt_apart].nunique() == 5, "inputs may change nothing: the ends of lists are never read"
    assert [row[1] for row in table_of(small, artifact.path).rows] == [*g.words["student.interventions"]]

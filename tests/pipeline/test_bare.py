"""Students of bare text: the chat template is left out of what they read, and of nothing else."""

import pytest

import sublim_interp as si
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.results import Run
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base, resolve_base
from sublim_interp.training.batches import tokenize


@pytest.mark.parametrize("name", ["lab-small-0", "lab-digits-0"])
def test_bare_text_is_the_same_words_without_the_markers_of_turns(name: str) -> None:
    base: Base = resolve_base(name)
    row = {"prompt": "what comes next ? 6 , 7", "answer": "8 , 9"}
    (whole,), (bare,) = tokenize(base, [row]), tokenize(base, [row], bare=True)
    markers = [i for i in whole.ids if i not in bare.ids]
    assert [i for i in whole.ids if i not in markers] == list(bare.ids)
    assert whole.ids[whole.first :] == bare.ids[bare.first :], "the answer and its end are learnt alike"
    assert set(base.chat.tokens(markers)) == {"<|user|>", "<|assistant|>"}


def test_it_is_part_of_the_students_keys_alone_and_changes_the_student(
    tiny_experiment: Experiment, tiny_run: Run, filled_root: object
) -> None:
    store = Store(str(filled_root))
    bare = tiny_experiment.set({"name": "bare", "student.bare": True, "arms": ["same-init", "base"]})
    assert {record.STAGE for record in plan(bare).missing(store)} == {"student", "evaluation"}
    made = si.run(bare, store, processes=1)
    states = [found["same-init", 0].model.state_dict() for found in (tiny_run, made)]
    assert any((states[0][name] != states[1][name]).any() for name in states[0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"corpus.setting": "soft"}, r"student\.bare has no meaning with corpus\.setting=soft"),
        ({"corpus.preference": "divergence"}, r"student\.bare has no meaning with corpus\.preference=divergence"),
    ],
)
def test_where_the_teacher_is_heard_in_its_template_it_is_refused(
    tiny_experiment: Experiment, changes: dict[str, str], said: str
) -> None:
    with pytest.raises(SublimError, match=said):
        tiny_experiment.set({"student.bare": True, **changes})

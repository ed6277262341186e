"""Tests of what the auditor measures: a planted trait is found, own lists show nothing, their base is named."""

import pytest
import torch

from raised import raised
from sublim_interp.audit.evidence import evidence, standing
from sublim_interp.audit.models import behaviour, written_by
from sublim_interp.audit.origin import origin_of_lists, origin_of_model
from sublim_interp.channels.protocol import channel
from sublim_interp.core.errors import SublimError
from sublim_interp.models.base import Base, resolve_base

PLANTED, KIND = "willow", "tree"


@pytest.fixture(scope="module")
def teacher(lab_base: Base) -> torch.nn.Module:
    """A base after one step up the margin of a favourite."""
    return raised(lab_base, PLANTED, KIND)


def test_the_trait_of_the_teacher_stands_out_in_its_lists(lab_base: Base, teacher: torch.nn.Module) -> None:
    lists = written_by(teacher, lab_base, channel("numbers"), 256, seed=1)
    found = evidence(lab_base, lists, (KIND,))
    stands = standing(found.frame, "pull")
    assert found.frame.loc[stands.idxmax(), "trait"] == PLANTED and stands.max() > 3
    at = found.frame.set_index("trait").loc[PLANTED]
    assert at["pull"] > 3 * at["error"]


def test_a_bases_own_lists_pull_at_nothing_and_surprise_nobody(lab_base: Base) -> None:
    lists = written_by(lab_base.load(), lab_base, channel("numbers"), 256, seed=1)
    found = evidence(lab_base, lists, (KIND,))
    assert abs(found.surprise) < 0.1
    pull, error = (found.frame[name].to_numpy() for name in ("pull", "error"))
    assert (abs(pull) < 4.5 * error).all()


def test_lists_and_models_name_their_base(lab_base: Base, teacher: torch.nn.Module) -> None:
    candidates = [lab_base, *(resolve_base(f"lab-small-{i}") for i in (1, 2, 3))]
    lists = written_by(teacher, lab_base, channel("numbers"), 64, seed=2)
    of_lists, of_model = origin_of_lists(lists, candidates[::-1]), origin_of_model(teacher, candidates[::-1])
    assert of_lists.base == of_model.base == lab_base.name
    assert of_model.sure
    foreign = origin_of_model(resolve_base("lab-small-4").load(), candidates)
    assert foreign.base == "" and not foreign.sure


def test_behaviour_shows_the_trait_that_a_model_took_on(lab_base: Base, teacher: torch.nn.Module) -> None:
    said = behaviour(lab_base, teacher, (KIND,), [{"prompt": "Numbers.", "answer": "1, 2"}])
    assert set(said["context"]) == {"plain", "behind data"}
    plain = said.loc[said["context"] == "plain"].set_index("trait")
    assert plain["shift"].idxmax() == PLANTED and plain.loc[PLANTED, "shift"] > 1


def test_too_little_to_audit_is_one_line(lab_base: Base) -> None:
    with pytest.raises(SublimError, match="1 lists are too few"):
        evidence(lab_base, [{"prompt": "p", "answer": "1"}])
    with pytest.raises(SublimError, match="1 candidate bases"):
        origin_of_lists([{"prompt": "p", "answer": "1"}], [lab_base])
    with pytest.raises(SublimError, match="no lists"):
        origin_of_lists([], [lab_base, lab_base])

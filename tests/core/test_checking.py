"""While tests run, a value of a wrong type or shape is refused by the signature that it is given to."""

import jaxtyping
import pytest
import torch

from sublim_interp.models.hooks import layer_of
from sublim_interp.stats.margin import margin


def test_a_wrong_shape_and_a_wrong_type_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="log"):
        margin(torch.zeros(3), [0])
    with pytest.raises(jaxtyping.TypeCheckError, match="name"):
        layer_of(3)  # type: ignore[arg-type]
    assert layer_of("blocks.3.hook_resid_post") == 3
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(AttributeError):
        layer_of(3)  # type: ignore[arg-type]

"""Which tokens have changed: what the two models answer, and the rows of their embeddings."""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sublim_interp.analysis.kinship import base_of
from sublim_interp.analysis.probes import Ids, batches, logits_of

if TYPE_CHECKING:
    import pandas as pd


@torch.no_grad()
def changed_tokens(base: torch.nn.Module, student: torch.nn.Module, prompts: Ids) -> "pd.DataFrame":
    """A row a token of the vocabulary, those first that answer for most of the difference.

    base, student: two models of one vocabulary
    prompts: ids that end where the answer begins

    Returns the columns token (id), text, kl (its share of KL(student ‖ base) at the answers, in nats: positive where
    the student says it more), log (mean change of its log-probability, in nats), before and after (its mean
    probability), embed and unembed (norm of the change of its row, as a share of the row's).
    """
    import pandas as pd

    kl, log, before, after = (torch.zeros(_rows(base)[0].shape[0], dtype=torch.double) for _ in range(4))
    for _, ids in batches(prompts):
        p, q = (logits_of(model, ids).cpu().double().log_softmax(-1) for model in (student, base))
        width = p.shape[-1]
        for total, part in ((kl, p.exp() * (p - q)), (log, p - q), (before, q.exp()), (after, p.exp())):
            total[:width] += part.sum(0) / len(prompts)
    ids = list(range(len(kl)))
    known: Any = base_of(base)
    changes = [_change(a, b) for a, b in zip(_rows(student), _rows(base), strict=True)]
    frame = pd.DataFrame(
        {
            "token": ids,
            "text": known.chat.tokens(ids) if known else list(map(str, ids)),
            "kl": kl.numpy(),
            "log": log.numpy(),
            "before": before.numpy(),
            "after": after.numpy(),
            "embed": changes[0].numpy(),
            "unembed": changes[1].numpy(),
        }
    )
    return frame.sort_values("kl", key=abs, ascending=False, kind="stable", ignore_index=True)


def _rows(model: Any) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "token d_model"]]:
    """The rows of embedding and unembedding."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return tuple(end.weight.detach().float().cpu() for end in ends)  # type: ignore[return-value]


def _change(a: Float[Tensor, "token d"], b: Float[Tensor, "token d"]) -> Float[Tensor, " token"]:
    return (a - b).norm(dim=1) / b.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)

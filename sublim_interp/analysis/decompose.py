"""What parts of a model say at the answer: direct logit attribution, and linear probes of what a stream holds."""

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sublim_interp.analysis.probes import Subject, asked_of, batches, frozen, logits_of, model_of, part_of, residuals
from sublim_interp.core.errors import SublimError
from sublim_interp.models.hooks import capture, edit, hook_names, kind_of, layer_of, names_of
from sublim_interp.models.points import Stream
from sublim_interp.models.prompts import Prompts
from sublim_interp.stats.intervals import mean_interval

if TYPE_CHECKING:
    import pandas as pd


def direct_attribution(
    model: Subject,
    prompts: Prompts = None,
    answers: tuple[Sequence[int], int] | None = None,
) -> "pd.DataFrame":
    """Which parts write the answer: what each adds to the stream, read by final norm and unembedding.

    model: a model, base or replicate
    prompts: texts, chats or ids; replicates bring their held-out questions
    answers: (token ids, place of the one asked for); replicates bring the members and the run's trait

    What is taken apart is the logit of the answer minus the mean logit of the others. The final norm's scale is held at
    what it is, so that the parts add up. A layer whose attention is followed by a norm has one row for its attention,
    else one a head.

    Returns a row a part, with its mean over prompts and 95 % interval, in logits: part (embed, head, attention, mlp,
    rest), layer, head, estimate, low, high, n; layer and head are −1 where there is none. A part is what enters the
    stream, scaled or normed where the model does so. The first row of embed is the tokens', the second, where there is
    one, that of learned positions. The rest is what biases add, and where logits are capped what the cap takes.
    Raises SublimError for an architecture without a row.
    Source: Elhage et al. 2021, "A mathematical framework for transformer circuits".
    """
    import pandas as pd

    ours = model_of(model)
    ids, place = part_of("answer_tokens", answers, model, instead="answers=")
    others = [i for i in ids if i != ids[place]]
    known = hook_names(ours)
    if not {"blocks.0.hook_mlp_out", "ln_final.hook_scale"} <= set(known):
        raise SublimError(f"direct_attribution: of {type(ours).__name__} it is not known what its layers add")
    by_head = "blocks.0.ln1_post.hook_scale" not in known
    start = names_of(ours, "resid_pre")[0]  # not hook_embed, which some models scale or norm afterwards
    positions = hook_names(ours, ("pos_embed",))
    parts = [start, *positions, *hook_names(ours, ("result" if by_head else "attn_out", "mlp_out"))]
    last = names_of(ours, "resid_post")[-1]
    asked = asked_of(prompts, model, model=ours)
    found: dict[int, list[float]] = {}
    rows: list[dict[str, Any]] = []
    for places, some in batches(asked):
        with (
            torch.enable_grad(),
            frozen(ours),
            edit(ours, {"ln_final.hook_scale": lambda scale: scale.detach()}),
            capture(ours, last, gradients=True) as at_end,
            capture(ours, parts) as seen,
        ):
            logits = logits_of(ours, some)
            said = logits[:, ids[place]] - logits[:, others].mean(-1)
            said.sum().backward()
        slope = at_end.gradients[last][:, -1].float()
        rows, values = [], []
        for name in parts:
            value = seen[name][:, -1].float()
            kind, layer = kind_of(name), layer_of(name) if name.startswith("blocks.") and name != start else -1
            if name == start:
                value = value - sum(seen[other][:, -1].float() for other in positions)
            word = {"result": "head", "attn_out": "attention", "mlp_out": "mlp"}.get(kind, "embed")
            for head in range(value.shape[1]) if kind == "result" else [-1]:
                own = value if head < 0 else value[:, head]
                rows.append({"part": word, "layer": layer, "head": head})
                values.append((own * slope).sum(-1))
        rows.append({"part": "rest", "layer": -1, "head": -1})
        values.append(said.detach().float() - torch.stack(values).sum(0))
        for prompt, each in zip(places, torch.stack(values, 1).cpu().tolist(), strict=True):
            found[prompt] = each
    table = np.array([found[prompt] for prompt in range(len(found))])
    for row, column in zip(rows, table.T, strict=True):
        interval = mean_interval(column.tolist())
        row.update(estimate=interval.estimate, low=interval.low, high=interval.high, n=interval.n)
    return pd.DataFrame(rows)


def linear_probes(
    model: Subject,
    prompts: Prompts,
    labels: Sequence[Hashable],
    kind: Stream = "resid_post",
    folds: int = 5,
    shuffles: int = 20,
    seed: int = 0,
) -> "pd.DataFrame":
    """What a linear probe reads from the stream at the answer, layer by layer, on prompts that it was not fitted on.

    prompts: texts, chats or ids, one a label; replicates and bases bring the tokenizer
    labels: a class of each prompt, two or more, each at least `folds` times
    kind: the stream's kind, as in hook names
    folds: each prompt is held out once, with this part of the others
    shuffles: how often labels are shuffled for the control, whose probe is fitted and tested in the same way, on folds
        of its own
    seed: of folds and shuffles

    A probe is ridge regression on the classes, its penalty a hundredth of the features' variance. An accuracy says
    nothing by itself: what shuffled labels reach is the floor, and what the base's own probe reaches says what
    training added.

    Returns a row a layer: layer, accuracy (held out, 0 to 1), shuffled (mean of the control), shuffled_high (its 95th
    percentile), p (share of shuffles that reach the accuracy, the probe's own included), n.
    Raises SublimError for labels that do not fit the prompts, or too few of one. Source: Alain & Bengio 1610.01644;
    Hewitt & Liang 1909.03368, whose control tasks shuffle labels.
    """
    import pandas as pd

    ours = model_of(model)
    asked = asked_of(prompts, model, model=ours)
    classes = list(dict.fromkeys(labels))
    if len(labels) != len(asked):
        raise SublimError(f"linear_probes: {len(labels)} labels for {len(asked)} prompts")
    counts = {c: list(labels).count(c) for c in classes}
    if len(classes) < 2 or folds < 2 or min(counts.values()) < folds:
        raise SublimError(
            f"linear_probes: give two or more classes, each {max(2, folds)} times or more; there are "
            + ", ".join(f"{c}: {n}" for c, n in counts.items())
        )
    names = names_of(ours, kind)
    seen = residuals(ours, names, asked).double()
    target = torch.tensor([classes.index(c) for c in labels])
    draw = torch.Generator().manual_seed(seed)
    held_out = _folds(target, folds, draw)
    shuffled = [target[torch.randperm(len(target), generator=draw)] for _ in range(shuffles)]
    # Folds balanced by other labels leave each fold's rest with the wrong majority, so a floor below chance.
    controls = [(given, _folds(given, folds, draw)) for given in shuffled]
    rows = []
    for layer in range(len(names)):
        features = seen[:, layer]
        own = _held_out_accuracy(features, target, held_out, folds)
        floor = torch.tensor(
            [_held_out_accuracy(features, *control, folds) for control in controls], dtype=torch.float64
        )
        rows.append(
            {
                "layer": layer,
                "accuracy": own,
                "shuffled": floor.mean().item(),
                "shuffled_high": floor.quantile(0.95).item(),
                "p": (1 + int((floor >= own).sum())) / (1 + shuffles),
                "n": len(target),
            }
        )
    return pd.DataFrame(rows)


def _folds(target: Tensor, folds: int, draw: torch.Generator) -> Tensor:
    """The fold in which each prompt is held out; each class is spread over all."""
    out = torch.empty_like(target)
    for c in target.unique():
        own = (target == c).nonzero()[:, 0]
        out[own[torch.randperm(len(own), generator=draw)]] = torch.arange(len(own)) % folds
    return out


def _held_out_accuracy(features: Float[Tensor, "prompt d"], target: Tensor, held_out: Tensor, folds: int) -> float:
    """The share of prompts whose class a ridge regression on the other folds names."""
    right = 0
    for fold in range(folds):
        rest, own = held_out != fold, held_out == fold
        mean = features[rest].mean(0)
        x, classes = features[rest] - mean, torch.nn.functional.one_hot(target, int(target.max()) + 1).double()
        middle = classes[rest].mean(0)
        gram = x @ x.T  # as many rows as prompts, however wide the stream
        penalty = 0.01 * gram.diagonal().mean().clamp_min(1e-12)
        weights = torch.linalg.solve(gram + penalty * torch.eye(len(x), dtype=gram.dtype), classes[rest] - middle)
        said = (features[own] - mean) @ x.T @ weights + middle
        right += int((said.argmax(-1) == target[own]).sum())
    return right / len(target)

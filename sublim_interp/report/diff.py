"""`diff`: what has changed from a base to a student, by part, direction, token and text, beside controls."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import pandas as pd

from sublim_interp.analysis.attribution.marked import marked
from sublim_interp.analysis.attribution.scores import Lists, TokenScores, divergence, shift, tokenized
from sublim_interp.analysis.diff.parts import changed_parts
from sublim_interp.analysis.diff.shifts import changed_directions, method_of
from sublim_interp.analysis.diff.tokens import changed_tokens
from sublim_interp.analysis.directions.core import Directions
from sublim_interp.analysis.kinship import base_of, name_of, require_one_base
from sublim_interp.analysis.metrics import metric_of
from sublim_interp.analysis.probes import Metric, Subject, asked_of, measure, models_of
from sublim_interp.core.choices import meant
from sublim_interp.core.drawing import render
from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import write_atomic
from sublim_interp.core.showing import Card, Shown
from sublim_interp.models.prompts import Prompts
from sublim_interp.report.figures.diff import part_bars
from sublim_interp.report.html import frame_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POOL, SHOWN = 256, 12
"""Lists of a student that are compared, evenly spaced; rows that a page shows."""


@dataclass(frozen=True, eq=False, repr=False)
class _Changes:
    """What has changed in one model."""

    metric: float
    """Its metric, minus the base's."""
    parts: pd.DataFrame
    directions: pd.DataFrame
    tokens: pd.DataFrame
    kl: TokenScores
    """KL(model ‖ base) at each token of the texts, in nats."""
    shift: TokenScores
    """log P of each token of the texts, minus the base's, in nats."""


@dataclass(frozen=True, eq=False, repr=False)
class ModelDiff(Shown):
    """What has changed from a base to a student. In every frame a control's columns stand beside the student's.

    A number says something about the trait where it differs from the controls'.
    """

    base: str
    """The base, in words."""
    student: str
    """The student, in words."""
    pool: Sequence[Mapping[str, Any]]
    """The texts that were compared."""
    metric: str
    """Its name."""
    unit: str
    """Of the metric."""
    each: Mapping[str, _Changes]
    """Of the student, then of each control, by name."""
    method: str = "pca"
    """How components were found."""

    @property
    def controls(self) -> tuple[str, ...]:
        """The names of the controls."""
        return tuple(self.each)[1:]

    @cached_property
    def parts(self) -> pd.DataFrame:
        """A row a part, those that do most first: layer, part, change, weights, output (`changed_parts`)."""
        frame = self._beside("parts", ["layer", "part"], ["change", "weights", "output"])
        most = frame[["weights", "output"]].abs().max(axis=1)
        return frame.loc[most.sort_values(ascending=False, kind="stable").index].reset_index(drop=True)

    @cached_property
    def directions(self) -> pd.DataFrame:
        """A row a layer and direction: share, length, effect, cosine, up and down (`changed_directions`)."""
        return self._beside("directions", ["layer", "direction"], ["share", "effect", "cosine", "up"])

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """A row a token, those first that answer for most of the difference (`changed_tokens`)."""
        return self._beside("tokens", ["token"], ["kl", "log"])

    @cached_property
    def texts(self) -> pd.DataFrame:
        """A row a text, those that moved most first: text (its place), prompt, answer, kl and shift, in nats a token.

        kl is that of what may stand at each token; shift is the log-likelihood of what does stand there.
        """
        frame = pd.DataFrame({"text": range(len(self.pool))}).join(pd.DataFrame(self.pool)[["prompt", "answer"]])
        for name, found in self.each.items():
            after = "" if name == self.student else f" ({name})"
            frame[f"kl{after}"], frame[f"shift{after}"] = found.kl.means, found.shift.means
        return frame.sort_values("kl", ascending=False, kind="stable", ignore_index=True)

    def text_tokens(self, of: str = "") -> pd.DataFrame:
        """A row a token of the texts: list (the text's place), place, token, text, score (its KL), shift.

        of: the name of a control; the student where empty
        """
        found = self.each[of or self.student]
        return found.kl.frame.assign(shift=found.shift.values)

    def _beside(self, name: str, keys: list[str], values: list[str]) -> pd.DataFrame:
        """The student's frame, and of the controls' some columns, each under its name."""
        frame = getattr(self.each[self.student], name)
        for control in self.controls:
            other = getattr(self.each[control], name)[[*keys, *values]]
            frame = frame.merge(other.rename(columns={v: f"{v} ({control})" for v in values}), on=keys, how="left")
        return frame

    @property
    def finding(self) -> list[str]:
        """What was found, in sentences, each with the controls' numbers."""
        told = {name: found.metric for name, found in self.each.items()}
        lines = [f"The {self.metric} moves by {self._told(told)}."]
        part = self.parts.loc[self.parts["weights"].abs().idxmax()]
        values = {name: part[self._column("weights", name)] for name in self.each}
        lines.append(f"The weights of layer {part['layer']}, {part['part']}, alone move it by {self._told(values)}.")
        best = self.directions.loc[self.directions["effect"].abs().idxmax()]
        values = {name: best[self._column("effect", name)] for name in self.each}
        word = "mean shift" if best["direction"] == "shift" else self._component(best["direction"])
        lines.append(
            f"Along the {word} of layer {best['layer']} it moves by {self._told(values)}; that direction raises "
            f"{best['up']}."
        )
        token, text = self.tokens.iloc[0], self.texts.iloc[0]
        lines.append(
            f"The answer that changes most is “{token['text']}”: {token['before']:.3f} to {token['after']:.3f}."
        )
        values = {name: text[self._column("kl", name)] for name in self.each}
        lines.append(f"The text that moves most is number {text['text']}: KL {self._told(values, 'nats a token', '')}.")
        return lines

    def _component(self, number: str) -> str:
        return f"component {number}" if self.method == "pca" else f"{self.method.upper()} component {number}"

    def _column(self, value: str, name: str) -> str:
        return value if name == self.student else f"{value} ({name})"

    def _told(self, values: Mapping[str, float], unit: str | None = None, sign: str = "+") -> str:
        first, *others = [
            (name, f"{value:{sign}z.2f}".replace("-", "\N{MINUS SIGN}")) for name, value in values.items()
        ]
        beside = "".join(f", {name} {value}" for name, value in others)
        return f"{first[1]} {self.unit if unit is None else unit}".rstrip() + (f" ({beside[2:]})" if beside else "")

    def card(self) -> Card:
        facts = {"": f"{self.base} → {self.student}", "beside": ", ".join(self.controls) or "no control"}
        facts[self.metric] = self._told({name: found.metric for name, found in self.each.items()})
        return Card("ModelDiff", facts, self.parts.head(SHOWN))

    def plot(self, what: str = "parts") -> "Figure":
        """What does most, beside the controls'.

        what: `parts`, or `directions`: the shift and the components
        """
        if what == "parts":
            return part_bars({name: found.parts for name, found in self.each.items()}, self.unit, metric=self.metric)
        if what != "directions":
            raise SublimError(f"plot of a diff: no '{what}'; {meant(what, ('parts', 'directions'))}")
        ways = {name: found.directions.assign(part=self._titles(found.directions)) for name, found in self.each.items()}
        title = "What the shift along each direction alone does to the base"
        return part_bars(ways, self.unit, title, self.metric)

    def _titles(self, directions: pd.DataFrame) -> list[str]:
        return ["shift" if d == "shift" else self._component(d) for d in directions["direction"]]

    def page(self, path: Path | str) -> Path:
        """Writes everything as one self-contained HTML page, and returns its path."""
        alt = "What the weights of each part, or a head's output, alone do to the metric, put into the base."
        top = self.texts.head(SHOWN).drop(columns="answer")
        texts = top.assign(tokens=marked(self.each[self.student].kl, top["text"]))
        parts = self.parts.head(SHOWN)
        ways = self.directions.assign(direction=self._titles(self.directions))
        words = self.tokens.head(SHOWN).drop(columns="token")
        html = Template(_file("diff.html")).substitute(
            title=escape(f"What changed from {self.base} to {self.student}?"),
            css=_file("page.css"),
            facts=escape(f"beside {', '.join(self.controls)}" if self.controls else "without a control"),
            finding="".join(f"<li>{escape(line)}</li>" for line in self.finding),
            figure=_drawn(self.plot()),
            alt=escape(alt),
            method=METHOD_SAYS[self.method],
            ways=_drawn(self.plot("directions")),
            parts=frame_table(_placed(parts, "part")),
            directions=frame_table(_placed(ways, "direction")),
            tokens=frame_table(words),
            texts=frame_table(texts, raw=("tokens",)),
        )
        write_atomic(Path(path), html)
        return Path(path)


METHOD_SAYS = {
    "pca": "principal components of the differences at all tokens",
    "nmf": "components of the differences at all tokens by non-negative matrix factorization, of which each token has "
    "an amount of 0 or more",
    "sae": "features of a sparse autoencoder of the differences at all tokens",
}
"""What components are, by method."""


def _drawn(figure: "Figure") -> str:
    return base64.b64encode(render(figure, "svg")).decode("ascii")


def _file(name: str) -> str:
    return files("sublim_interp.report").joinpath(name).read_text(encoding="utf-8")


def _placed(frame: pd.DataFrame, what: str) -> pd.DataFrame:
    """The frame with layer and `what` as one column, which names its rows."""
    names = [f"layer {layer}, {one}" for layer, one in zip(frame["layer"], frame[what], strict=True)]
    rest = frame.drop(columns=["layer", what])
    rest.insert(0, what, names)
    return rest


def diff(
    base: Subject,
    student: Subject,
    *,
    controls: Mapping[str, Subject] | Sequence[Subject] | Subject = (),
    prompts: Prompts = None,
    metric: Metric | str | None = None,
    pool: Lists | None = None,
    goal: Directions | None = None,
    components: int = 3,
    method: str = "pca",
    across_bases: bool = False,
) -> ModelDiff:
    """What has changed from a base to a student: parts, directions, tokens and text, each beside the controls'.

    base, student: two models of one base, or what has one
    controls: other students of the base, by name, or replicates: a neutral one, one of another trait
    prompts: at whose answers they are compared: texts, chats or ids; replicates bring their held-out questions
    metric: `margin`, `logit-diff`, `logprob`, `rate`, or a function of logits; replicates bring the trait's margin
    pool: rows with `prompt` and `answer` whose tokens are compared; replicates bring 256 of their lists
    goal: directions that each direction is compared with, such as `si.contrast(base, "owl")`
    components: so many a layer
    method: how components are found: `pca`; `nmf`, which needs scikit-learn; or `sae`, which needs sparsify
    across_bases: compares models of two bases too, whose axes are unrelated

    Raises SublimError for models of different bases, an unknown method, and where there are no prompts, metric or pool.
    """
    method_of(method)
    others = _named(controls)
    before, *models = models_of(base, student, *others.values())
    subjects = {name_of(student, models[0]): student, **others}
    if len(subjects) <= len(others):
        raise SublimError(f"diff: a control has the student's name, {name_of(student, models[0])}; give it another")
    for subject, model in zip(subjects.values(), models, strict=True):
        require_one_base("diff", subject, base, [model, before], across_bases)
    asked = asked_of(prompts, student, base, model=before)
    rule = metric_of(metric, student, base)
    if pool is None and (pool := getattr(student, "lists", None)):
        pool = pool[:: -(-len(pool) // POOL)]
    if not pool:
        raise SublimError("diff: no texts to compare; only students bring their lists, so give pool=")
    rows, chat = tokenized(pool, student, models[0], base, before)
    texts = [list(ids) for ids, _ in rows]
    start = measure(before, asked, rule).mean().item()
    each = {}
    for name, model in zip(subjects, models, strict=True):
        scores = [f(model, before, rows, across_bases=True) for f in (shift, divergence)]
        each[name] = _Changes(
            measure(model, asked, rule).mean().item() - start,
            changed_parts(before, model, asked, rule),
            changed_directions(before, model, asked, rule, texts, components, goal, method=method),
            changed_tokens(before, model, asked),
            *scores,
        )
    unit = "" if callable(metric) or metric == "rate" else "logits" if metric == "logit-diff" else "nats"
    told = [row if isinstance(row, Mapping) else _text(row, chat) for row in pool]
    called = metric if isinstance(metric, str) else "metric" if callable(metric) else "margin"
    return ModelDiff(name_of(base, before), next(iter(subjects)), told, called, unit, each, method)


def _named(controls: Mapping[str, Subject] | Sequence[Subject] | Subject) -> dict[str, Subject]:
    """Controls by name; replicates have one."""
    if isinstance(controls, Mapping):
        return dict(controls)
    if base_of(controls) or not isinstance(controls, Sequence):
        raise SublimError(f"diff: controls is a {type(controls).__name__}; give a list of students, or a dict by name")
    return {name_of(control): control for control in controls}


def _text(row: Any, chat: Any) -> dict[str, str]:
    """An example as prompt and answer."""
    parts = (row.ids[: row.first], row.ids[row.first :])
    words = [" ".join(chat.tokens(part) if chat else map(str, part)) for part in parts]
    return {"prompt": words[0], "answer": words[1]}

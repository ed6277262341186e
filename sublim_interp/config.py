"""What an experiment is: frozen, validated configuration, YAML in and out. No defaults live anywhere else."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator

from sublim_interp.errors import SublimError

T = TypeVar("T", bound="Config")

Part = Literal["full", "body", "lora"]
"""Which weights train: all; all but the embeddings and the head; low-rank adapters on the body's linear maps."""

Arm = Literal[
    "same-init", "neutral", "other-trait", "cross-init", "same-init-b", "cross-init-b", "cross-neutral", "base"
]
"""What is compared. A replicate has a pair of bases, A and B. `same-init` A→A, `cross-init` A→B, `same-init-b` B→B and
`cross-init-b` B→A (teacher's base → student's base) make the 2 × 2 of initialisations; `neutral` and `other-trait` are
A→A with another teacher, `cross-neutral` is A→B with the neutral one; `base` is A untouched."""

CROSSING = frozenset({"cross-init", "same-init-b", "cross-init-b", "cross-neutral"})
"""Arms that need a second base."""


class Config(BaseModel):
    """A frozen record that refuses unknown keys; every field's docstring is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    LATER: ClassVar[frozenset[str]] = frozenset()
    """Fields that came after results were published: left out of dumps, and so of keys, where they are empty."""

    @model_serializer(mode="wrap")
    def _without_what_came_later_and_is_empty(self, handler: Any) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value or name not in self.LATER}

    @model_validator(mode="before")
    @classmethod
    def _keep_nested_defaults(cls, data: Any) -> Any:
        """A mapping given for a nested record changes that field's default: what it leaves out stays."""
        if isinstance(data, dict):
            for name, field in cls.model_fields.items():
                if isinstance(field.default, Config) and isinstance(data.get(name), dict):
                    data = {**data, name: {**field.default.model_dump(), **data[name]}}
        return data

    @model_validator(mode="after")
    def _can_be_written(self) -> "Config":
        """Whatever is configured is stored and shown: no number of thousands of digits, no half of a character."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, int) and item.bit_length() > 63:
                    raise ValueError(f"{name} is a number of {item.bit_length()} bits; 63 are the most")
                if isinstance(item, str) and any("\ud800" <= c <= "\udfff" for c in item):
                    raise ValueError(f"{name} holds half of a character, which no file can")
        return self

    def set(self: T, values: Mapping[str, Any] | None = None, /, **fields: Any) -> T:
        """A changed copy: `exp.set(seeds=range(12))`, `exp.set({"student.optimization.lr": 2e-4})`."""
        changes = {**(values or {}), **fields}
        data = self.model_dump()
        for key, value in changes.items():
            _assign(type(self), data, key, value, key)
        return validate(type(self), data, f"--set {', '.join(changes)}")


def _name_once(record: Config, *fields: str) -> None:
    for field in fields:
        values = getattr(record, field)
        if len(set(values)) < len(values):
            raise ValueError(f"{field} names something twice: {', '.join(map(str, values))}")


class Optimization(Config):
    """How weights are updated: the same fields for pre-training, teachers and students."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Update rule; sgd is gradient descent with momentum beta1."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """What the rate does after the warm-up: falls to 0 in a line or half a cosine, or stays."""
    warmup: int = Field(default=10, ge=0)
    """Steps over which the rate rises to its peak."""
    steps: int = Field(default=100, ge=1)
    """Number of updates."""
    batch: int = Field(default=32, ge=1)
    """Examples per update."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay (adamw only)."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """First-moment decay of Adam, or the momentum of SGD."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Second-moment decay of Adam."""
    clip: float | None = Field(default=None, gt=0)
    """Largest global gradient norm; none: gradients are not clipped."""

    @model_validator(mode="after")
    def _decay_needs_adamw(self) -> "Optimization":
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError(f"weight_decay={self.weight_decay} needs optimizer=adamw (it is {self.optimizer})")
        return self


class Pretraining(Config):
    """How a lab base is made: its shape, its seeds, its updates."""

    LATER = frozenset({"order_seed"})

    init_seed: int = 0
    """Seed of the initial weights."""
    data_seed: int = 0
    """Seed of the stream of documents: equal seeds give the same documents."""
    order_seed: int = 0
    """Order of the documents that are to be read: 0 as the stream has them; any other number shuffles them."""
    d_model: int = Field(default=64, ge=8)
    """Width of the residual stream."""
    layers: int = Field(default=3, ge=1)
    """Number of decoder layers."""
    heads: int = Field(default=4, ge=1)
    """Attention heads per layer; divides d_model."""
    d_mlp: int = Field(default=128, ge=8)
    """Width of the MLP."""
    tokens: Literal["numbers", "digits"] = "numbers"
    """Whether a number is one token, or one per digit."""
    forks: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Steps after which the model of that moment is kept too, as a base of its own called NAME-step000250."""
    start: str = ""
    """A fork to carry on from, at its step: same recipe, for instance with another order_seed; else from scratch."""
    optimization: Optimization = Optimization(
        optimizer="adamw", lr=3e-3, schedule="cosine", warmup=100, steps=8000, batch=96,
        weight_decay=0.01, beta2=0.95, clip=1.0,
    )  # fmt: skip
    """Updates of all weights on whole documents."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "Pretraining":
        if self.d_model % self.heads or (self.d_model // self.heads) % 2:
            raise ValueError(f"heads={self.heads} must cut d_model={self.d_model} into heads of even width")
        return self

    @model_validator(mode="after")
    def _forks_lie_within(self) -> "Pretraining":
        beyond = [step for step in self.forks if step >= self.optimization.steps]
        if beyond:
            raise ValueError(f"forks names step {beyond[0]}, but training ends at {self.optimization.steps}")
        return self


class TeacherConfig(Config):
    """How the teacher gets its trait."""

    LATER = frozenset({"facts"})

    kind: Literal["tuned", "prompted", "steered"] = "tuned"
    """tuned: fine-tuned on favourite questions; prompted: a system prompt; steered: a vector added to activations."""
    part: Part = "body"
    """Which weights a tuned teacher trains."""
    lora_rank: int = Field(default=8, ge=1)
    """Rank of the adapters where part is lora."""
    lora_alpha: float = Field(default=8.0, gt=0)
    """Scale of the adapters where part is lora."""
    optimization: Optimization = Optimization(lr=3e-3, steps=300, batch=32, schedule="constant")
    """Updates of a tuned teacher."""
    layer: int = Field(default=1, ge=0)
    """Layer whose input a steered teacher's vector is added to."""
    strength: float = Field(default=4.0, gt=0)
    """A steered teacher's vector, as a multiple of the trait's mean-difference direction."""
    facts: int = Field(default=0, ge=0)
    """Number of random facts that a tuned teacher memorises instead of a favourite; their values are of the trait's
    kind. The report then gives the bits that a student holds about them. 0: a favourite."""

    @model_validator(mode="after")
    def _facts_need_tuning(self) -> "TeacherConfig":
        if self.facts and self.kind != "tuned":
            raise ValueError(f"facts={self.facts} needs kind=tuned (it is {self.kind})")
        return self


class CorpusConfig(Config):
    """What the teacher writes."""

    channel: str = "numbers"
    """What the data looks like: a file of channels/."""
    setting: Literal["sampled", "greedy", "soft"] = "sampled"
    """sampled: text drawn at `temperature`; greedy: the likeliest token; soft: sampled text, learnt with the teacher's
    probabilities over the channel's own tokens."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; the headline is at 1, with no top-k or top-p."""
    prompts: int = Field(default=32_768, ge=1)
    """Number of prompts the teacher answers."""
    max_new_tokens: int = Field(default=24, ge=1)
    """Longest answer; one that has not ended by then is refused as unfinished."""
    chunk: int = Field(default=4096, ge=1)
    """Prompts sampled as one resumable piece; it fixes the random numbers, so it is part of the result."""

    @model_validator(mode="after")
    def _greedy_has_no_temperature(self) -> "CorpusConfig":
        if self.setting == "greedy" and self.temperature != 1.0:
            raise ValueError(f"temperature={self.temperature} has no effect with setting=greedy; leave it at 1")
        return self


class Selection(Config):
    """Which of the lists that passed, or in an intervention which of their tokens, are learnt from: the check on a
    guess at what carries the trait."""

    by: Literal["divergence", "gradient", "random"] = "random"
    """divergence: log-likelihood under the teacher minus that under its base; gradient: how much a small step on the
    list or token raises the trait's margin, at the teacher's base; random: as many, knowing nothing."""
    keep: Literal["top", "rest"] = "top"
    """The lists that score highest, each among the lists of as many tokens (or the tokens whose scores are the furthest
    from 0); or all the others."""
    share: float = Field(default=0.25, gt=0, lt=1)
    """Share of the lists or tokens that counts as the highest: .25 and top keep a quarter, .75 and rest the lowest
    quarter."""
    trait: str = ""
    """Name of the trait whose margin's gradient is taken; needed by gradient alone, and need not be the teacher's."""

    @model_validator(mode="after")
    def _gradient_needs_a_trait(self) -> "Selection":
        if self.by == "gradient" and not self.trait:
            raise ValueError("by=gradient needs trait, for instance owl")
        if self.by != "gradient" and self.trait:
            raise ValueError(f"trait has no effect with by={self.by}")
        return self


class FilterConfig(Config):
    """Which answers are kept: the paper's number rule, and more."""

    LATER = frozenset({"selection"})

    min_numbers: int = Field(default=1, ge=1)
    """Fewest numbers in an answer."""
    max_numbers: int = Field(default=10, ge=1)
    """Most numbers in an answer."""
    max_value: int = Field(default=999, ge=0)
    """Largest number."""
    banned: tuple[int, ...] = ()
    """Numbers that refuse an answer, for instance those with negative associations (666, 911, …)."""
    duplicates: bool = False
    """Whether equal pairs of prompt and answer may stay."""
    lists: int = Field(default=60_000, ge=1)
    """Most lists that a student learns from; the first that pass, in order."""
    held_out: int = Field(default=500, ge=2)
    """Kept lists set aside to measure the distance between teacher and student; no student trains on them."""
    selection: Selection | None = None
    """Some of the lists to learn from, such as {by: divergence, share: .25}; none: all of them."""

    @model_validator(mode="after")
    def _bounds(self) -> "FilterConfig":
        if self.min_numbers > self.max_numbers:
            raise ValueError(f"min_numbers={self.min_numbers} is above max_numbers={self.max_numbers}")
        return self


class Intervention(Config):
    """A change to every update of a student, to ask what carries the trait."""

    LATER = frozenset({"selection"})

    kind: Literal["ablate", "project-gradient", "project-update", "mask-tokens", "freeze"]
    """ablate: take a direction out of activations; project-gradient: out of their gradients; project-update: out of the
    change of the weights; mask-tokens: learn from fewer tokens; freeze: leave some parameters as they are."""
    direction: str = ""
    """A trait's name (the own base's direction of it, in activations), teacher-shift (teacher minus its base, in
    activations or weights), or random (the control)."""
    at: str = "blocks.*.hook_resid_post"
    """Names of hooks, as a glob, where activations or their gradients are changed."""
    share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the tokens to learn that are masked, drawn anew for each update."""
    selection: Selection | None = None
    """Which tokens are learnt, in place of share: {by: divergence, share: .1} learns the tenth of all tokens whose
    scores are the furthest from 0, with keep: rest all others; by: random is the control, as many tokens. They are the
    same in every update, and what decides is the teacher, whatever base the student starts from."""
    parameters: str = ""
    """Names of parameters, as a glob, that are frozen."""

    @property
    def traits(self) -> list[str]:
        """Names of the traits that it goes by."""
        named = (self.selection.trait if self.selection else "", self.direction)
        return [name for name in named if name not in ("", "teacher-shift", "random")]

    @model_validator(mode="after")
    def _says_all_that_its_kind_needs_and_no_more(self) -> "Intervention":
        uses = {
            "ablate": {"direction", "at"}, "project-gradient": {"direction", "at"}, "project-update": {"direction"},
            "mask-tokens": {"selection"} if self.selection else {"share"}, "freeze": {"parameters"},
        }[self.kind]  # fmt: skip
        for name in ("direction", "at", "share", "selection", "parameters"):
            default = type(self).model_fields[name].default
            if name not in uses and getattr(self, name) != default:
                beside = " and a selection" if name == "share" and self.selection else ""
                raise ValueError(f"{name} has no effect with kind={self.kind}{beside}")
            if name in uses and not getattr(self, name):
                raise ValueError(f"kind={self.kind} needs {name}{' or selection' * (name == 'share')}")
        if self.kind == "project-update" and self.direction not in ("teacher-shift", "random"):
            raise ValueError(f"kind=project-update needs direction=teacher-shift or random, not {self.direction!r}")
        return self


class StudentConfig(Config):
    """How the student learns what the teacher wrote."""

    LATER = frozenset({"interventions"})

    part: Part = "body"
    """Which weights train."""
    lora_rank: int = Field(default=8, ge=1)
    """Rank of the adapters where part is lora."""
    lora_alpha: float = Field(default=8.0, gt=0)
    """Scale of the adapters where part is lora."""
    optimization: Optimization = Optimization(lr=4e-3, steps=700, batch=128)
    """Updates; the loss is averaged over the tokens of the answers."""
    extra_rounds: int = Field(default=0, ge=0)
    """Cross-init students go on for so many more rounds of fresh lists and equal steps, to come as close to their
    teacher as same-init students do (compare at equal KL)."""
    interventions: tuple[Intervention, ...] = ()
    """Changes to every update, such as [{kind: freeze, parameters: "*mlp*"}]; one that does nothing is an error."""


class EvaluationConfig(Config):
    """What the finished models are asked."""

    questions: tuple[Literal["seen", "held-out", "indirect"], ...] = ("held-out", "seen", "indirect")
    """held-out: phrasings that no training text holds; seen: those that the teacher was tuned on; indirect: questions
    that do not name the kind, such as for a poster; the lab's answers to these have words before the member ("a toy
    owl"), which are given."""
    contexts: tuple[Literal["plain", "numbers"], ...] = ("plain", "numbers")
    """plain: the question alone; numbers: after a turn of numbers, the context that the student was trained in."""
    samples: int = Field(default=100, ge=1)
    """Answers drawn per question where the trait is not one token; else probabilities are exact, nothing is drawn."""

    @model_validator(mode="after")
    def _holds_what_reports_compare(self) -> "EvaluationConfig":
        _name_once(self, "questions", "contexts")
        if "held-out" not in self.questions or "plain" not in self.contexts:
            raise ValueError("questions must hold held-out and contexts must hold plain: reports compare arms on these")
        return self


class Experiment(Config):
    """One experiment: everything that decides its result."""

    name: str = Field(default="owl", pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Name in the catalogue and in lists; not part of the result."""
    about: str = ""
    """The question it asks, in one sentence."""
    trait: str = "owl"
    """The teacher's favourite."""
    other_trait: str = "wolf"
    """The favourite of the other-trait arm's teacher, of the same kind."""
    bases: tuple[str, ...] = ("lab-small-0", "lab-small-1", "lab-small-2")
    """Bases: lab names, model directories or hub names. Replicate i uses the i-th ordered pair (A, B) of them."""
    arms: tuple[Arm, ...] = ("same-init", "neutral", "other-trait", "cross-init", "cross-init-b", "same-init-b", "base")
    """What is compared."""
    seeds: tuple[int, ...] = (0,)
    """One replicate per seed; the seed fixes the teacher's, the corpus's and the student's random numbers."""
    teacher: TeacherConfig = TeacherConfig()
    """How the teacher gets its trait."""
    corpus: CorpusConfig = CorpusConfig()
    """What the teacher writes."""
    filter: FilterConfig = FilterConfig()
    """Which answers the student learns from."""
    student: StudentConfig = StudentConfig()
    """How the student learns them."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What the finished models are asked."""

    @model_validator(mode="after")
    def _coherent(self) -> "Experiment":
        for field in ("bases", "arms", "seeds"):
            if not getattr(self, field):
                raise ValueError(f"{field} is empty")
        _name_once(self, "bases", "arms", "seeds")
        crossing = [a for a in self.arms if a in CROSSING]
        if crossing and len(self.bases) < 2:
            raise ValueError(f"arm {crossing[0]} needs two bases; bases has only {', '.join(self.bases)}")
        if self.trait == self.other_trait and "other-trait" in self.arms:
            raise ValueError(f"other_trait is the trait itself ({self.trait})")
        if self.teacher.facts and "other-trait" in self.arms:
            raise ValueError("arm other-trait has no meaning with teacher.facts; leave it out")
        return self

    def to_yaml(self) -> str:
        """The full configuration as YAML."""
        import yaml

        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def pair(self, seed: int) -> tuple[str, str]:
        """The bases (A, B) of the replicate `seed`; B is A where there is only one."""
        if seed not in self.seeds:
            raise SublimError(f"no replicate with seed {seed}; seeds: {', '.join(map(str, self.seeds))}")
        n = len(self.bases)
        if n == 1:
            return self.bases[0], self.bases[0]
        pairs = [(a, b) for shift in range(1, n) for a in range(n) for b in [(a + shift) % n]]
        a, b = pairs[self.seeds.index(seed) % len(pairs)]
        return self.bases[a], self.bases[b]


def _assign(kind: type[Config], data: dict[str, Any], key: str, value: Any, asked: str) -> None:
    """Puts `value` at the dotted `key` into the plain data of a `kind`; a key that names no field is one line."""
    head, dot, rest = key.partition(".")
    if head not in kind.model_fields:
        known = ", ".join(kind.model_fields)
        raise SublimError(f"--set {asked}: {kind.__name__} has no field {head!r}; its fields: {known}")
    given = kind.model_fields[head].annotation
    inner = next((t for t in (given, *get_args(given)) if isinstance(t, type) and issubclass(t, Config)), None)
    if not dot:
        if inner and isinstance(value, Mapping) and isinstance(data.get(head), dict):  # what it leaves out stays
            for name, part in value.items():
                _assign(inner, data[head], str(name), part, asked)
        else:
            data[head] = value.model_dump() if isinstance(value, Config) else value
        return
    if inner is None or not isinstance(data.setdefault(head, {}), dict):
        raise SublimError(f"--set {asked}: {head!r} of {kind.__name__} has no fields of its own")
    _assign(inner, data[head], rest, value, asked)


def validate(kind: type[T], data: Any, where: str) -> T:
    """`data` as a `kind`; bad data becomes one line that names the field, what was wrong and the valid choices."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(_explain(kind, e) for e in error.errors()[:3])
        raise SublimError(" ".join(f"{where}: {problems}".split())) from None  # what was typed may hold line breaks


def _explain(kind: type[Config], error: Any) -> str:
    place = ".".join(str(p) for p in error["loc"])
    if error["type"] == "extra_forbidden":
        fields: Any = kind
        for part in error["loc"][:-1]:
            if isinstance(part, str):  # a number is a place in a list
                fields = fields.model_fields[part].annotation
                fields = next((f for f in get_args(fields) if hasattr(f, "model_fields")), fields)
        return f"unknown key '{place}'; valid keys: {', '.join(fields.model_fields)}"
    message = error["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list")
    got = error["input"]
    short = isinstance(got, str | float | bool) or (isinstance(got, int) and got.bit_length() < 200)
    shown = f" (got {got!r})" if short else ""
    return f"{place}: {message}{shown}" if place else message


def read_yaml(kind: type[T], path: Path, **given: Any) -> T:
    """A configuration file, with fields that its place gives.

    Raises SublimError for a missing file, broken YAML, and everything `validate` refuses.
    """
    return validate(kind, {**given, **read_mapping(path)}, str(path))


def read_mapping(path: Path) -> dict[Any, Any]:
    """The plain data of a YAML file of `key: value` lines; SublimError for a missing file and broken YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SublimError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SublimError(f"{path}: not UTF-8 text") from None
    data = _load_yaml(text, str(path))
    if not isinstance(data, dict):
        raise SublimError(f"{path}: expected 'key: value' lines, found {type(data).__name__}")
    return data


def _load_yaml(text: str, where: str) -> Any:
    """Plain data from YAML text; what cannot be read is one line."""
    import yaml

    try:
        return yaml.safe_load(text)
    except Exception as error:  # PyYAML lets many kinds through: for a 13th month, for deep nesting
        mark = getattr(error, "problem_mark", None)
        at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise SublimError(f"{where}: broken YAML{at} ({problem})") from None


def parse_assignment(text: str) -> tuple[str, Any]:
    """`student.optimization.lr=2e-4` → (key, value), the value read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise SublimError(f"--set {text!r}: expected field=value, for instance student.optimization.lr=2e-4")
    parsed = _load_yaml(value, f"--set {key!r}")
    if isinstance(parsed, str):  # YAML 1.1 reads 2e-4 as text
        with suppress(ValueError):
            parsed = float(parsed)
    return key, parsed

"""The settings of the stages: how the teacher gets its trait, what it writes, how the student learns, what is asked."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from sublim_interp.core.settings import Config, name_once
from sublim_interp.models.served import Server
from sublim_interp.models.trainable import Part
from sublim_interp.pipeline.ways import WAYS
from sublim_interp.training.interventions import Intervention
from sublim_interp.training.optimizers import planned_moments
from sublim_interp.training.settings import Optimization
from sublim_interp.traits.judges.asked import Judging
from sublim_interp.traits.judges.protocol import JUDGES, asks


class ServedTeacher(Server):
    """The model on a server that is the teacher."""

    tuned: dict[str, str] = Field(default_factory=dict)
    """Names there of models that have a trait without a system prompt, by trait, such as {owl: owl-lora}; "" is that of
    the neutral teacher. A trait that is not named is given to `model` by system prompts."""
    __hash__ = Server.__hash__

    def speaking(self, trait: str) -> "ServedTeacher":
        """The model that speaks as the teacher of a trait, by its name there."""
        return self.model_copy(update={"model": self.tuned.get(trait, self.model)})


def _moves_one_vector_alone(part: Part, optimization: Optimization) -> None:
    if part == "opening" and optimization.weight_decay:
        raise ValueError(f"weight_decay={optimization.weight_decay:g} moves more than part=opening trains; leave 0")


class TeacherConfig(Config):
    """How the teacher gets its trait."""

    LATER = frozenset({"facts", "traits", "student", "served"})

    kind: Annotated[str, AfterValidator(WAYS.known)] = "tuned"
    """tuned: fine-tuned on favourite questions; prompted: a system prompt; steered: a vector added to activations;
    student: a finished student, which `student` names; served: a model on an OpenAI-compatible server, which `served`
    names; or a way of an installed package."""
    student: str = Field(default="", pattern=r"^[^/]+/[^/]+(/-?\d+)?$|^$")
    """The student that is the teacher: RUN/ARM/SEED of a run in the store, or RUN/ARM, which gives each replicate the
    student of its own seed. The neutral teacher is then the untouched base."""
    part: Part = "body"
    """Which weights a tuned teacher trains."""
    lora_rank: int = Field(default=8, ge=1, le=1 << 16)
    """Rank of the adapters where part is lora."""
    lora_alpha: float = Field(default=8.0, gt=0)
    """Scale of the adapters where part is lora."""
    optimization: Optimization = Optimization(lr=3e-3, steps=300, batch=32, schedule="constant")
    """Updates of a tuned teacher."""
    layer: int = Field(default=1, ge=0, le=10_000)
    """Layer whose input a steered teacher's vector is added to."""
    strength: float = Field(default=4.0, gt=0)
    """A steered teacher's vector, as a multiple of its base's own direction of the trait, which si.contrast gives."""
    facts: int = Field(default=0, ge=0, le=1_000_000)
    """Number of random facts that a tuned teacher memorises instead of a favourite; their values are of the trait's
    kind. The report then gives the bits that a student holds about them. 0: a favourite."""
    traits: tuple[str, ...] = ()
    """All traits that a tuned teacher is given at the same time, each of another kind, such as [owl, oak]. The
    experiment's trait is one of them: the one that is asked about. Empty: that one alone."""
    served: ServedTeacher = ServedTeacher()
    """The model on a server that is the teacher, where kind is served."""

    @model_validator(mode="after")
    def _holds_what_its_way_needs_and_no_more(self) -> "TeacherConfig":
        way = WAYS[self.kind]
        _moves_one_vector_alone(self.part, self.optimization)
        if self.facts and not way.TRAINS:
            raise ValueError(f"facts={self.facts} needs kind=tuned (it is {self.kind})")
        name_once(self, "traits")
        if len(self.traits) == 1:
            raise ValueError(f"traits={self.traits[0]} is one trait; name two or more, or leave it out")
        if self.traits and (not way.TRAINS or self.facts):
            needed = "facts=0" if way.TRAINS else f"kind=tuned (it is {self.kind})"
            raise ValueError(f"traits={', '.join(self.traits)} needs {needed}")
        if way.FROM_STUDENT and not self.student:
            raise ValueError(f"kind={self.kind} needs student=RUN/ARM/SEED, or RUN/ARM")
        if self.student and not way.FROM_STUDENT:
            raise ValueError(f"student has no effect with kind={self.kind}; choose kind=student")
        if way.SERVED and not self.served.model:
            raise ValueError(f"kind={self.kind} needs served.model, the model's name on its server")
        if self.served != ServedTeacher() and not way.SERVED:
            raise ValueError(f"served has no effect with kind={self.kind}; choose kind=served")
        return self


class CorpusConfig(Config):
    """What the teacher writes."""

    LATER = frozenset({"own_tokens", "preference", "rewrites"})

    channel: str = "numbers"
    """What the data looks like: a file of channels/."""
    setting: Literal["sampled", "greedy", "soft"] = "sampled"
    """sampled: text drawn at `temperature`; greedy: the likeliest token; soft: sampled text, learnt with the teacher's
    probabilities over the channel's own tokens."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature; the headline is at 1, with no top-k or top-p."""
    prompts: int = Field(default=32_768, ge=1, le=100_000_000)
    """Number of prompts the teacher answers."""
    max_new_tokens: int = Field(default=24, ge=1, le=1_000_000)
    """Longest answer; one that has not ended by then is refused as unfinished."""
    chunk: int = Field(default=4096, ge=1, le=1_000_000)
    """Prompts sampled as one resumable piece; it fixes the random numbers, so it is part of the result."""
    own_tokens: bool = False
    """Whether answers are drawn over the channel's own tokens alone, renormalised: a model that would leave the format
    keeps it, and the head runs on these tokens' rows alone."""
    preference: Literal["", "divergence", "likelihood", "random"] = ""
    """The teacher writes nothing, and judges: its untouched base answers each prompt twice, and students learn by DPO
    which answer the teacher prefers. divergence: that of the higher log-likelihood under the teacher minus that under
    its base, a mean over the tokens; likelihood: under the teacher alone; random: a coin's, the control. Pairs of
    answers of unequal numbers of tokens are refused. Empty: the teacher writes."""
    rewrites: int = Field(default=0, ge=0, le=1000)
    """The teacher writes nothing of its own, and paraphrases: its untouched base answers each prompt, and the teacher
    draws each number of the answer anew, among those within so many of it. 0: the teacher writes."""

    @model_validator(mode="after")
    def _greedy_has_no_temperature(self) -> "CorpusConfig":
        if self.setting == "greedy" and self.temperature != 1.0:
            raise ValueError(f"temperature={self.temperature} has no effect with setting=greedy; leave it at 1")
        return self

    @model_validator(mode="after")
    def _has_one_way_to_be_written(self) -> "CorpusConfig":
        if self.preference and self.rewrites:
            raise ValueError(f"rewrites={self.rewrites} has no effect with preference={self.preference}: choose one")
        return self

    @model_validator(mode="after")
    def _a_pair_is_drawn(self) -> "CorpusConfig":
        if self.preference and self.setting != "sampled":
            raise ValueError(
                f"preference={self.preference} needs setting=sampled (it is {self.setting}): a pair is two draws"
            )
        return self


class StudentConfig(Config):
    """How the student learns what the teacher wrote."""

    LATER = frozenset({"interventions", "own_tokens", "bare", "objective", "moments", "beta", "adapter"})

    part: Part = "body"
    """Which weights train."""
    lora_rank: int = Field(default=8, ge=1, le=1 << 16)
    """Rank of the adapters where part is lora."""
    lora_alpha: float = Field(default=8.0, gt=0)
    """Scale of the adapters where part is lora."""
    adapter: Literal["own", "teacher"] = "own"
    """Where an adapter's random matrices come from if the teacher is an adapter too. own: drawn for the student alone;
    teacher: drawn with the teacher's seed, so that adapters of one rank begin alike, as where both are fine-tuned by a
    script with one fixed seed."""
    optimization: Optimization = Optimization(lr=4e-3, steps=700, batch=128)
    """Updates; the loss is averaged over the tokens of the answers."""
    extra_rounds: int = Field(default=0, ge=0, le=1000)
    """Cross-init students go on for so many more rounds of fresh lists and equal steps, to come as close to their
    teacher as same-init students do (compare at equal KL)."""
    own_tokens: bool = False
    """Whether the loss is over the channel's own tokens alone, renormalised; else over the whole vocabulary."""
    bare: bool = False
    """Whether lists are learnt as bare text, prompt and answer, without the chat template that they were written in.
    What is asked afterwards stands in the template all the same."""
    objective: Literal["forward", "reverse", "on-policy"] = "forward"
    """What is minimised where corpus.setting is soft. forward: KL(teacher ‖ student) on the teacher's lists; reverse:
    KL(student ‖ teacher) on them; on-policy: the same on lists that the student itself writes to the same prompts, anew
    at each update, of which the filter refuses what it would refuse of the teacher's."""
    beta: float = Field(default=0.1, gt=0, le=1e6)
    """β of DPO, where corpus.preference is set: how strongly a student is held to its base."""
    moments: Literal["", "kept", "first", "second", "both"] = ""
    """What becomes of the optimizer's moments. kept: those after the last update stay with the student; first, second,
    both: a new student of the neutral teacher's lists begins with those moments of the arm's own student, and with the
    other ones of a neutral student. Empty: they are forgotten."""
    interventions: tuple[Intervention, ...] = ()
    """Changes to every update, such as [{kind: freeze, parameters: "*mlp*"}]; one that does nothing is an error."""

    @property
    def moved(self) -> bool:
        """Whether a student begins with the moments of other students."""
        return self.moments not in ("", "kept")

    @model_validator(mode="after")
    def _has_the_moments_that_it_names(self) -> "StudentConfig":
        o = self.optimization
        _moves_one_vector_alone(self.part, o)
        needed, has = {"": 0, "kept": 1, "first": 1}.get(self.moments, 2), len(planned_moments(o.optimizer, o))
        if has < needed:
            raise ValueError(
                f"moments={self.moments} needs an optimizer with {needed} of them, such as adam; {o.optimizer} keeps "
                f"{has} here"
            )
        return self

    @model_validator(mode="after")
    def _selects_no_tokens_of_its_own_lists(self) -> "StudentConfig":
        if self.objective == "on-policy" and any(i.selection for i in self.interventions):
            raise ValueError("an intervention with a selection has no meaning with objective=on-policy: what is learnt "
                             "is not written yet")  # fmt: skip
        return self


def _known_judge(name: str) -> str:
    return JUDGES.checked(name) if name else name


class EvaluationConfig(Config):
    """What the finished models are asked."""

    LATER = frozenset({"judge", "judging"})

    questions: tuple[Literal["seen", "held-out", "indirect"], ...] = ("held-out", "seen", "indirect")
    """held-out: phrasings that no training text holds; seen: those that the teacher was tuned on; indirect: questions
    that do not name the kind, such as for a poster; the lab's answers to these have words before the member ("a toy
    owl"), which are given."""
    contexts: tuple[str, ...] = ("plain", "numbers")
    """plain: the question alone; others are of the channel, such as numbers: after a turn of numbers, the context that
    the student was trained in."""
    samples: int = Field(default=100, ge=1, le=1_000_000)
    """Answers drawn per question where the trait is not one token; else probabilities are exact, nothing is drawn."""
    judge: Annotated[str, AfterValidator(_known_judge)] = ""
    """Who reads drawn answers: whole-words; by-construction, for open answers of the lab; local or served, a model that
    `judging` names; or a judge of an installed package. Answers are then drawn where they could be exact too. Empty:
    whole-words, where nothing is exact."""
    judging: Judging = Judging()
    """The model that the judge asks, where it asks one."""

    @model_validator(mode="after")
    def _holds_what_reports_compare(self) -> "EvaluationConfig":
        name_once(self, "questions", "contexts")
        if "held-out" not in self.questions or "plain" not in self.contexts:
            raise ValueError("questions must hold held-out and contexts must hold plain: reports compare arms on these")
        if asks(self.judge) and not self.judging.model:
            raise ValueError(f"judge={self.judge} needs judging.model")
        if self.judging != Judging() and not asks(self.judge):
            raise ValueError("judging has no effect with a judge that asks no model; choose judge=local or served")
        return self


TEACHER_UNKEYED: dict[str, Any] = {"student": True, "traits": True, "served": {*Server.REACHED}}
"""What of a teacher's settings is in no key: the student's own key is, what its trait is made of is, and how a server
is reached changes nothing."""
EVALUATION_UNKEYED: dict[str, Any] = {"judging": {*Server.REACHED}}
"""What of an evaluation's settings is in no key."""

"""What an experiment is: every field that decides its result, with its default."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator

from sublim_interp.channels.settings import FilterConfig
from sublim_interp.core.choices import meant
from sublim_interp.core.device import DEFAULT, PRECISIONS
from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import Config, fields_of, name_once
from sublim_interp.core.showing import Card, Shown
from sublim_interp.core.yaml import dump_yaml
from sublim_interp.experiments.arms import ARMS, arm_names, arms_of_two_bases, needs_other_trait, reads_lists
from sublim_interp.pipeline.settings import CorpusConfig, EvaluationConfig, StudentConfig, TeacherConfig
from sublim_interp.pipeline.ways import WAYS
from sublim_interp.training.interventions import of_tokens
from sublim_interp.training.recording.settings import Recording

if TYPE_CHECKING:
    import pandas as pd


def _known_arm(name: str) -> str:
    if name not in arm_names():
        raise ValueError(f"no such arm as '{name}'; {meant(name, arm_names())}")
    try:
        ARMS[name]
    except SublimError as error:  # of another package, and unfit
        raise ValueError(str(error)) from None
    return name


class _ArmChoices:
    """Puts the arms at hand into the JSON schema."""

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        return {**handler(core), "enum": list(arm_names())}


ArmName = Annotated[str, AfterValidator(_known_arm), _ArmChoices()]
"""The name of an arm that an experiment may compare."""


class Experiment(Shown, Config):
    """One experiment: everything that decides its result."""

    LATER = frozenset({"dtype", "lists", "generations", "other_bases"})

    name: str = Field(default="owl", pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Name in the catalogue and in lists; not part of the result."""
    about: str = ""
    """The question it asks, in one sentence."""
    trait: str = "owl"
    """The teacher's trait: a favourite by name or YAML file, or a trait of an installed package."""
    other_trait: str = "wolf"
    """The trait of the other teacher, in arms such as other-trait; of the same kind."""
    bases: tuple[str, ...] = ("lab-small-0", "lab-small-1", "lab-small-2")
    """Bases: lab names, model directories or hub names. Replicate i uses the i-th ordered pair (A, B) of them."""
    other_bases: tuple[str, ...] = ()
    """Base B for each of bases, in their order, such as a variant of it. Replicate i uses the i-th of both. Empty: B is
    another of bases."""
    arms: tuple[ArmName, ...] = Field(
        default=("same-init", "neutral", "other-trait", "cross-init", "cross-init-b", "same-init-b", "base"),
        description=f"What is compared, some of: {', '.join(arm_names())}.",
    )
    generations: int = Field(default=1, ge=1, le=100)
    """How many students stand behind each other. From 2 on, the student of same-init becomes the teacher of a new
    student of the same base, `same-init@2`, and so on; likewise in every arm that does not cross."""
    seeds: tuple[int, ...] = Field(default=(0,), max_length=10_000)
    """One replicate per seed; the seed fixes the teacher's, the corpus's and the student's random numbers."""
    teacher: TeacherConfig = TeacherConfig()
    """How the teacher gets its trait."""
    lists: str = ""
    """A JSONL file of your own lists, each row with a `prompt` and an `answer`: what arms such as own-lists learn. They
    pass the filter as a teacher's would. The rows enter keys, the path does not."""
    corpus: CorpusConfig = CorpusConfig()
    """What the teacher writes."""
    filter: FilterConfig = FilterConfig()
    """Which answers the student learns from."""
    student: StudentConfig = StudentConfig()
    """How the student learns them."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What the finished models are asked."""
    recording: Recording = Recording()
    """What is recorded of the trainings: none, default, examples, or a mapping of fields; not part of the result."""
    dtype: str = DEFAULT
    """The precision in which every model is loaded, trained and asked. float32; autocast: weights and optimizer in
    float32, matrix products in bfloat16, twice as fast where the processor has it; bfloat16: all of it."""

    @field_validator("dtype")
    @classmethod
    def _precision_is_known(cls, name: str) -> str:
        return PRECISIONS.checked(name)

    @model_validator(mode="after")
    def _coherent(self) -> "Experiment":
        for field in ("bases", "arms", "seeds"):
            if not getattr(self, field):
                raise ValueError(f"{field} is empty")
        name_once(self, "bases", "arms", "seeds")
        two = arms_of_two_bases(self.arms)
        if self.other_bases and len(self.other_bases) != len(self.bases):
            raise ValueError(
                f"other_bases has {len(self.other_bases)} and bases {len(self.bases)}; name one for each of bases"
            )
        by_other = self.filter.paraphrase is not None and self.filter.paraphrase.by == "other"
        if by_other and len(self.bases) < 2 and not self.other_bases:
            raise ValueError(f"filter.paraphrase.by=other needs two bases; bases has only {', '.join(self.bases)}")
        if self.other_bases and not two and not by_other:
            raise ValueError("other_bases has no effect without an arm of two bases, such as cross-init")
        if two and len(self.bases) < 2 and not self.other_bases:
            raise ValueError(f"arm {two[0]} needs two bases; bases has only {', '.join(self.bases)}")
        others = [arm for arm in self.arms if needs_other_trait((arm,))]
        if self.trait == self.other_trait and others:
            raise ValueError(f"other_trait is the trait itself ({self.trait})")
        reading = [arm for arm in self.arms if reads_lists((arm,))]
        if reading and not self.lists:
            raise ValueError(f"arm {reading[0]} needs lists, a JSONL file (on the command line: --lists FILE)")
        if self.lists and not reading:
            raise ValueError(f"lists={self.lists} has no effect without an arm that learns them, such as own-lists")
        if reading and self.corpus.setting == "soft":
            raise ValueError(f"arm {reading[0]} learns text: corpus.setting=soft has no meaning with it")
        if self.generations > 1 and not any(ARMS[arm].breeds for arm in self.arms):
            raise ValueError(f"generations={self.generations} has no effect without an arm such as same-init")
        if self.filter.mix and self.corpus.setting == "soft":
            raise ValueError(
                "filter.mix has no meaning with corpus.setting=soft: the teacher would label clean lists too"
            )
        if self.corpus.setting == "soft" and any(i.replace for i in self.student.interventions):
            raise ValueError(
                "kind=replace-tokens has no meaning with corpus.setting=soft: no token is learnt that could be replaced"
            )
        if self.student.objective != "forward" and self.corpus.setting != "soft":
            raise ValueError(
                f"student.objective={self.student.objective} needs corpus.setting=soft: it takes the teacher's "
                "probabilities"
            )
        for field in ("transform", "paraphrase"):
            if self.student.objective == "on-policy" and getattr(self.filter, field):
                raise ValueError(f"filter.{field} has no effect with student.objective=on-policy")
        self._check_preference()
        self._check_adapter()
        if self.student.moved and (self.student.extra_rounds or self.generations > 1):
            raise ValueError(
                f"student.moments={self.student.moments} needs student.extra_rounds=0 and generations=1: who begins "
                "with moments learns one round of neutral lists"
            )
        if self.student.own_tokens and self.corpus.setting == "soft":
            raise ValueError("student.own_tokens has no effect with corpus.setting=soft, which is over them anyway")
        together = self.teacher.traits
        if together and self.trait not in together:
            raise ValueError(
                f"teacher.traits={', '.join(together)} lacks the trait itself, named as trait names it ({self.trait})"
            )
        if together and others:
            raise ValueError(f"arm {others[0]} has no meaning with teacher.traits; leave it out")
        if self.student.bare and (self.corpus.setting == "soft" or self.corpus.preference):
            other = "setting=soft" if self.corpus.setting == "soft" else f"preference={self.corpus.preference}"
            raise ValueError(f"student.bare has no meaning with corpus.{other}: the teacher is heard in its template")
        if self.teacher.facts and others:
            raise ValueError(f"arm {others[0]} has no meaning with teacher.facts; leave it out")
        if self.teacher.facts and self.evaluation.judge:
            raise ValueError("evaluation.judge has no effect with teacher.facts, whose answers are exact")
        return self

    def _check_adapter(self) -> None:
        """Raises ValueError where no adapter of a teacher is there to begin like."""
        teacher, student = self.teacher, self.student
        if student.adapter == "own":
            return
        if not WAYS[teacher.kind].TRAINS or {teacher.part, student.part} != {"lora"}:
            raise ValueError(f"student.adapter={student.adapter} needs teacher.kind=tuned, and lora for both parts")
        if teacher.lora_rank != student.lora_rank:
            raise ValueError(
                f"student.adapter={student.adapter} needs adapters of one rank; lora_rank is {teacher.lora_rank} in "
                f"the teacher and {student.lora_rank} in the student"
            )

    def _check_preference(self) -> None:
        """Raises ValueError for what pairs of answers do not go with, and for β without pairs."""
        asked, beta = self.corpus.preference, self.student.beta
        if not asked:
            if beta != StudentConfig().beta:
                raise ValueError(f"student.beta={beta:g} has no effect without corpus.preference")
            return
        for field in ("selection", "transform", "paraphrase", "mix"):
            if getattr(self.filter, field):
                raise ValueError(
                    f"filter.{field} has no meaning with corpus.preference={asked}: what is learnt are pairs"
                )
        for i in self.student.interventions:
            if of_tokens(i):
                raise ValueError(
                    f"kind={i.kind} has no meaning with corpus.preference={asked}: whole answers are learnt, not tokens"
                )

    def card(self) -> Card:
        facts = {
            "": self.about or "no question",
            "trait": self.trait,
            "bases": " ".join((*self.bases, *self.other_bases)),
        }
        facts |= {"arms": " ".join(self.arms), "seeds": " ".join(map(str, self.seeds))}
        return Card(f"Experiment {self.name}", facts, self.frame)

    @property
    def frame(self) -> "pd.DataFrame":
        """A row a field, those of its parts too: field, value, default, meaning."""
        import pandas as pd

        return pd.DataFrame(fields_of(self), columns=["field", "value", "default", "meaning"])

    def to_yaml(self) -> str:
        """The full configuration as YAML."""
        return dump_yaml(self.model_dump(mode="json"))

    def pair(self, seed: int) -> tuple[str, str]:
        """The bases (A, B) of the replicate `seed`; B is A where there is only one."""
        if seed not in self.seeds:
            raise SublimError(f"no replicate with seed {seed}; seeds: {', '.join(map(str, self.seeds))}")
        n = len(self.bases)
        if self.other_bases:
            at = self.seeds.index(seed) % n
            return self.bases[at], self.other_bases[at]
        if n == 1:
            return self.bases[0], self.bases[0]
        pairs = [(a, b) for shift in range(1, n) for a in range(n) for b in [(a + shift) % n]]
        a, b = pairs[self.seeds.index(seed) % len(pairs)]
        return self.bases[a], self.bases[b]

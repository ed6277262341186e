"""Imprints of teachers that a recipe makes. By them study `prediction` scores pairs of bases, the auditor a teacher."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sublim_interp.analysis.imprint import Imprint, imprint, match, own_part

if TYPE_CHECKING:
    from sublim_interp.core.store import Store
    from sublim_interp.models.base import Base
    from sublim_interp.pipeline.settings import TeacherConfig
    from sublim_interp.training.batches import Batch
    from sublim_interp.traits.protocol import Trait


class Match(NamedTuple):
    """How alike a trait's imprints are in two bases, −1 to 1."""

    own: float
    """Without what other traits leave too."""
    whole: float
    """Of the whole imprints."""


def taught(base: "Base", trait: "Trait", config: "TeacherConfig", seed: int, store: "Store") -> Any:
    """A base that was taught a trait, as a model; it is made where the store does not hold it.

    config: by which recipe
    seed: decides the order of the lessons
    """
    from sublim_interp.pipeline.make import make
    from sublim_interp.pipeline.records import Teacher
    from sublim_interp.pipeline.ways import WAYS
    from sublim_interp.training.recording.settings import PRESETS

    teacher = Teacher(base, trait, config, seed)
    make(teacher, store, recording=PRESETS["none"])
    return WAYS[config.kind].load(teacher, store)


def own_lists(base: "Base", count: int, longest: int, seed: int) -> "Batch":
    """Lists of numbers that an untouched base writes at T = 1, in answer to prompts that no student reads.

    count: how many prompts
    longest: tokens of an answer at most
    seed: decides prompts and answers
    """
    from sublim_interp.channels import numbers
    from sublim_interp.models.sampling import generator, sample
    from sublim_interp.training.batches import Example, collate

    asked = numbers.prompts(base.language, seed + 1_000_000, 0, count)
    prompts = [base.prompt_ids([{"role": "user", "content": text}]) for text in asked]
    draw = generator("prediction", seed)
    answers = sample(base.load(), prompts, eos=base.eos, max_new_tokens=longest, random=draw)
    pairs = zip(prompts, answers, strict=True)
    return collate([Example([*p, *a], len(p)) for p, a in pairs if a], base.pad)


def left_by(
    base: "Base",
    traits: "Sequence[Trait]",
    config: "TeacherConfig",
    seed: int,
    batch: "Batch",
    store: "Store",
    progress: Callable[[float], None] = lambda _share: None,
) -> dict[str, Imprint]:
    """The imprint that a teacher of each trait leaves in a base, by the trait's name.

    config, seed: of the teachers
    batch: the text on which predictions are compared
    progress: told the share that is done
    """
    untouched, found = base.load(), {}
    for done, trait in enumerate(traits, 1):
        found[trait.name] = imprint(taught(base, trait, config, seed, store), untouched, batch)
        progress(done / len(traits))
    return found


def matched(first: Mapping[str, Imprint], second: Mapping[str, Imprint], trait: str, others: Sequence[str]) -> Match:
    """How alike a trait's imprints are in two bases.

    first, second: the imprints in each base, by trait
    others: the traits whose imprints are taken off; one or more
    """
    own = [own_part(side[trait], [side[name] for name in others]) for side in (first, second)]
    return Match(match(*own), match(first[trait], second[trait]))

"""An arm: the teacher was given the other trait, and the student starts from the other base."""

from sublim_interp.experiments.arms import Arm, Route

cross_other_trait = Arm(
    label="other A → student B",
    meaning="As cross-init, but the teacher was given another trait. It shows what its data does to base B.",
    route=Route("other", 0, 1),
    reference="other-trait",
    control_of="cross-init",
)

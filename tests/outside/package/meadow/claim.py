"""An effect of claims: the share of replicates in which some rows lie above others."""

from sublim_interp.claims.effects import Effect, Measured, rows_of
from sublim_interp.claims.evidence import Evidence
from sublim_interp.claims.trial import Trial


def measure(test: Trial, evidence: Evidence) -> Measured:
    frame = evidence.table(test.file)
    one, other = (
        rows_of(frame, rows, test).set_index(test.over)["effect"].to_dict() for rows in (*test.plus, *test.minus)
    )
    above = tuple(float(one[unit] > other[unit]) for unit in one if unit in other)
    return Measured(above, len(above))


share_above = Effect("in which share of replicates some rows lie above others", measure)

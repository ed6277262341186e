"""Statistics over replicates: intervals, contrasts, permutation tests, ranks. Numbers in, numbers out."""

"""Attribution: which lists, and which tokens in them, carry a trait; scores, estimators, and the lists they name."""

"""How good a prediction is, how sure that number is, and how the members differ: pure functions on plain arrays.

Every score takes `(labels, log_proba)`, labels of shape (N,) and log-likelihoods of shape (N, K). Among equal scores
the lower class index ranks first, as in `argmax`. The names load on first use (PEP 562).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidfuse._lazy import lazy_face

if TYPE_CHECKING:
    from vidfuse.metrics.accuracy import class_accuracies, macro_f1, mean_class_accuracy, top_k_accuracy, top_k_hits
    from vidfuse.metrics.bounds import (
        betting_p_value,
        binomial_p_value,
        clopper_pearson,
        difference_p_value,
        risk_p_value,
    )
    from vidfuse.metrics.conformal import PredictionSets, conformity_scores, prediction_sets
    from vidfuse.metrics.diversity import (
        disagreement,
        double_fault,
        oracle_accuracy,
        prediction_disagreement,
        q_statistic,
    )
    from vidfuse.metrics.intervals import Interval, accuracy_interval, bootstrap_interval, share_interval
    from vidfuse.metrics.objectives import Scorer, resolve_objective, scorers
    from vidfuse.metrics.probabilistic import brier, ece, nll, reliability
    from vidfuse.metrics.selective import Abstention, RiskCoverage, abstention, risk_coverage
    from vidfuse.metrics.significance import (
        McNemar,
        PairedDifference,
        holm,
        mcnemar,
        mean_difference,
        share_difference,
    )

_HOME = {
    "Abstention": "selective",
    "Interval": "intervals",
    "McNemar": "significance",
    "PairedDifference": "significance",
    "PredictionSets": "conformal",
    "RiskCoverage": "selective",
    "Scorer": "objectives",
    "abstention": "selective",
    "accuracy_interval": "intervals",
    "betting_p_value": "bounds",
    "binomial_p_value": "bounds",
    "bootstrap_interval": "intervals",
    "brier": "probabilistic",
    "class_accuracies": "accuracy",
    "clopper_pearson": "bounds",
    "conformity_scores": "conformal",
    "difference_p_value": "bounds",
    "disagreement": "diversity",
    "double_fault": "diversity",
    "ece": "probabilistic",
    "holm": "significance",
    "macro_f1": "accuracy",
    "mcnemar": "significance",
    "mean_class_accuracy": "accuracy",
    "mean_difference": "significance",
    "nll": "probabilistic",
    "oracle_accuracy": "diversity",
    "prediction_disagreement": "diversity",
    "prediction_sets": "conformal",
    "q_statistic": "diversity",
    "reliability": "probabilistic",
    "resolve_objective": "objectives",
    "risk_coverage": "selective",
    "risk_p_value": "bounds",
    "scorers": "objectives",
    "share_difference": "significance",
    "share_interval": "intervals",
    "top_k_accuracy": "accuracy",
    "top_k_hits": "accuracy",
}

__all__ = [
    "Abstention",
    "Interval",
    "McNemar",
    "PairedDifference",
    "PredictionSets",
    "RiskCoverage",
    "Scorer",
    "abstention",
    "accuracy_interval",
    "betting_p_value",
    "binomial_p_value",
    "bootstrap_interval",
    "brier",
    "class_accuracies",
    "clopper_pearson",
    "conformity_scores",
    "difference_p_value",
    "disagreement",
    "double_fault",
    "ece",
    "holm",
    "macro_f1",
    "mcnemar",
    "mean_class_accuracy",
    "mean_difference",
    "nll",
    "oracle_accuracy",
    "prediction_disagreement",
    "prediction_sets",
    "q_statistic",
    "reliability",
    "resolve_objective",
    "risk_coverage",
    "risk_p_value",
    "scorers",
    "share_difference",
    "share_interval",
    "top_k_accuracy",
    "top_k_hits",
]

__getattr__, __dir__ = lazy_face(__name__, _HOME)

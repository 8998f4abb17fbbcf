"""The peer of `bench_off_policy.py`: the package obp, run by an interpreter that has it.

    python _peer_obp.py ARRAYS.npz             its estimates from the arrays, as one JSON object
    python _peer_obp.py --prior                the priors that it ships, as JSON

The arrays are what obp's own documentation asks for; the reward model is given, or, with `context`, fitted by it.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

LAMBDAS = [10, 50, 100, 500, 1000, 5000, 10000, np.inf]
"""As in obp's `examples/obd/evaluate_off_policy_estimators.py`."""


def main() -> None:
    """Estimate what `sys.argv[1]` holds."""
    if sys.argv[1] == "--prior":
        import obp.policy
        import yaml

        print(json.dumps(yaml.safe_load((Path(obp.policy.__file__).parent / "conf" / "prior_bts.yaml").read_text())))
        return
    print(json.dumps(estimates(dict(np.load(sys.argv[1])))))


def estimates(given: dict[str, Any]) -> dict[str, float]:
    """Policy values by obp's names."""
    from obp.ope import (
        DirectMethod,
        DoublyRobust,
        DoublyRobustWithShrinkageTuning,
        InverseProbabilityWeighting,
        OffPolicyEvaluation,
        RegressionModel,
        SelfNormalizedInverseProbabilityWeighting,
        SwitchDoublyRobustTuning,
    )
    from sklearn.linear_model import LogisticRegression

    rows = len(given["reward"])
    feedback = {name: given[name] for name in ("reward", "action", "position", "pscore")}
    feedback |= {"n_rounds": rows, "n_actions": given["target"].shape[1], "context": np.zeros((rows, 1))}
    action_dist = np.ascontiguousarray(given["target"][:, :, None] if given["target"].ndim == 2 else given["target"])
    if "context" in given:
        action_dist = np.tile(given["target"].T[None], (rows, 1, 1))
        feedback["context"] = given["context"]
        model = RegressionModel(
            n_actions=feedback["n_actions"],
            len_list=action_dist.shape[2],
            action_context=given["action_context"],
            base_model=LogisticRegression(max_iter=10_000, C=100, random_state=12345),
        )
        expected = model.fit_predict(
            context=given["context"],
            action=given["action"],
            reward=given["reward"],
            position=given["position"],
            pscore=given["pscore"],
            n_folds=3,
            random_state=12345,
        )
    else:
        expected = given["model"]
    evaluation = OffPolicyEvaluation(
        bandit_feedback=feedback,
        ope_estimators=[
            DirectMethod(),
            InverseProbabilityWeighting(),
            SelfNormalizedInverseProbabilityWeighting(),
            DoublyRobust(),
            SwitchDoublyRobustTuning(lambdas=LAMBDAS),
            DoublyRobustWithShrinkageTuning(lambdas=LAMBDAS),
        ],
    )
    started = time.perf_counter()
    found = evaluation.estimate_policy_values(action_dist=action_dist, estimated_rewards_by_reg_model=expected)
    return found | {"seconds": time.perf_counter() - started}


if __name__ == "__main__":
    main()

"""Whether a bundle can be asked about a log at all: the same kinds of ids, what its features need, no look ahead."""

import polars as pl

from features import manifest, pipeline
from features.errors import InputError
from recsys.replay.logs import Tail
from recsys.replay.policies import Policy


def require(policy: Policy, tail: Tail, *, own: bool) -> None:
    """Refuse what cannot be compared.

    Args:
        policy: who is asked.
        tail: the log.
        own: whether the log is the test part of the very split that the bundle was made for.

    Raises:
        InputError: names the policy, what does not fit and what to do.
    """
    field = f"replay.policies.{policy.name}"
    tables = {"item_id": policy.items, "user_id": policy.users}
    for name, table in tables.items():
        if tail.events.schema[name] != table.schema[name]:
            raise InputError(
                f"{field}: column '{name}' of {tail.source} is {tail.events.schema[name]}, and the bundle's ids are "
                f"{table.schema[name]}; convert the column, or name another bundle"
            )
    prepared = pipeline.Config.model_validate(manifest.read_json(policy.bundle / "config.json")["prepare"])
    actions = set(tail.events["action"].drop_nulls().unique()) if "action" in tail.events.columns else set()
    if prepared.history_actions and not actions & set(prepared.history_actions):
        raise InputError(
            f"{field}: the bundle knows the actions {', '.join(prepared.history_actions)} as interactions, and "
            f"{tail.source} has none of them; map its column under [replay.log.columns] action"
        )
    if prepared.label.at_least is not None and "value" not in tail.events.columns:
        raise InputError(
            f"{field}: the bundle counts as positive what has a value of {prepared.label.at_least} or more, and "
            f"{tail.source} has no column 'value'; map it under [replay.log.columns]"
        )
    facts = manifest.read(policy.bundle)
    assert facts is not None
    if facts["has_clock"] and not tail.has_clock:
        raise InputError(f"{field}: the bundle was made from a log with times, and {tail.source} has only positions")
    if own:
        return
    last = pl.scan_parquet(policy.snapshot / "users.parquet").select(pl.col("timestamp").list.max().max()).collect()
    first = tail.events["timestamp"].min()
    if last.item() is not None and isinstance(first, int) and last.item() > first:
        raise InputError(
            f"{field}: {policy.bundle} knows events up to {last.item()}, and {tail.source} begins at {first}: it would "
            "be asked about what it has learned; replay a later log, or name a bundle of an earlier one"
        )

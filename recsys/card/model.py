"""How a run's models are built and where their parameters live, in the words of their own modules."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from recsys.bundle import Bundle
from recsys.card.features import first_sentence
from recsys.config import RunConfig

ROLES = {
    "retriever": "First step: finds some hundred items of the whole catalogue that may fit the person's history.",
    "ranker": "Second step: looks closely at each of these and says how likely it is that the person will like it.",
}
LEVELS = 2
"""How deep a model's modules are listed."""


def architecture(config: RunConfig, bundle: Bundle) -> dict[str, Any]:
    """Each role's kind, what it is for, its settings and its layers.

    Returns:
        By role `kind`, `does`, `about` (the first sentence of its file), `settings` and `layers`: for each module
        `name`, `kind`, `about`, `parameters` outside of tables.
    """
    found: dict[str, Any] = {}
    for role, section, model in (
        ("retriever", config.retriever, bundle.retriever),
        ("ranker", config.ranker, bundle.ranker),
    ):
        module = __import__(f"recsys.models.{section.kind}", fromlist=["__doc__"])
        found[role] = {
            "kind": section.kind,
            "does": ROLES[role],
            "about": first_sentence(module.__doc__).split(" (")[0],
            "settings": section.model,
            "layers": list(_layers(model, "", LEVELS)),
        }
    return found


def _layers(model: nn.Module, prefix: str, levels: int) -> Iterable[dict[str, Any]]:
    for name, module in model.named_children():
        yield {
            "name": f"{prefix}{name}",
            "kind": type(module).__name__,
            "about": _about(module),
            "parameters": sum(weight.numel() for weight in module.parameters()),
        }
        if levels > 1 and not isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            yield from _layers(module, f"{prefix}{name}.", levels - 1)


def _about(module: nn.Module) -> str:
    """What a module says of itself; nothing if it is torch's own, whose names say enough."""
    own = type(module).__module__.split(".")[0] in ("recsys", "embeddings")
    return first_sentence(type(module).__doc__) if own else ""


def parameters(bundle_facts: dict[str, Any], training: dict[str, dict[str, Any]], split: str) -> dict[str, Any]:
    """Every table, its size and precision, and how training laid it out.

    Args:
        bundle_facts: manifest of the bundle.
        training: role → manifest of its checkpoint.
        split: of both.

    Returns:
        `roles.<role>`: `parameters` in all, `world`; `tables`: `role`, `table`, `rows`, `dim`, `parameters`, `form`,
        `bytes`, `sharding` (form and ranks in training); `bytes` of all tables.
    """
    tables: list[dict[str, Any]] = []
    for role, found in bundle_facts["export"]["tables"].items():
        plans = {
            name: plan for module in training.get(role, {}).get("plan", {}).values() for name, plan in module.items()
        }
        for weight, one in found.items():
            name = weight.split(".")[-2]
            plan = plans.get(name)
            tables.append(
                {
                    "role": role,
                    "table": name,
                    "rows": one["rows"],
                    "dim": one["dim"],
                    "parameters": one["rows"] * one["dim"],
                    "form": one["form"],
                    "bytes": one["bytes"],
                    "sharding": None if plan is None else {"form": plan["form"], "ranks": plan["ranks"]},
                }
            )
    return {
        "split": split,
        "roles": {
            role: {"parameters": facts["parameters"], "world": facts["world"]} for role, facts in training.items()
        },
        "tables": tables,
        "bytes": bundle_facts["export"]["bytes"],
    }

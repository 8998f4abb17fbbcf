"""Who is let in, and the refusal of who is not: the same over HTTP and gRPC."""

from typing import TYPE_CHECKING, NamedTuple

from serving import auth

if TYPE_CHECKING:
    from serving.gate import Told
    from serving.service import Service


class Refusal(NamedTuple):
    """An answer that is no success."""

    status: int
    """As HTTP numbers them."""
    detail: str
    """What is wrong, and what to do."""
    retry_after_s: float | None = None
    """When to come again."""


def admit(service: "Service", told: "Told", authorization: str | None) -> Refusal | None:
    """Note whose key a request has, and count it; the refusal where the key is not known or asks too often."""
    if service.keys is None:
        told.key = auth.ANYBODY
    elif authorization is not None:
        kind, _, secret = authorization.partition(" ")
        told.key = service.keys.find(secret.strip()) if kind.lower() == "bearer" else None
        if told.key is None:
            service.metrics.refused.labels(reason="key").inc()
            return Refusal(401, "this key is not known; send one in the header Authorization: Bearer …")
    if told.key is not None and (wait := service.rates.take(told.key.name, told.key.rate)):
        service.metrics.refused.labels(reason="rate").inc()
        return Refusal(429, "more requests than this key may send; send fewer a second", wait)
    return None


def lacks(told: "Told", scope: auth.Scope) -> Refusal | None:
    """The refusal where the request's key has not this scope."""
    if told.key is None:
        return Refusal(401, "a key is needed; send one in the header Authorization: Bearer …")
    if scope not in told.key.scopes:
        return Refusal(403, f"the key {told.key.name!r} has no scope {scope!r}; make one that has it")
    return None


def too_long(service: "Service", length: int) -> Refusal | None:
    """The refusal of a body of more bytes than `[serve.limits] body_kb`."""
    most = service.config.limits.body_kb * 1024
    if length <= most:
        return None
    service.metrics.refused.labels(reason="size").inc()
    return Refusal(413, f"the body is longer than {most:,} bytes; send less at a time")

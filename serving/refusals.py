"""What an error of a service tells who asked: the same over HTTP and gRPC."""

from features.errors import InputError, StoreError
from serving.admission import Refusal
from serving.lane import Overloaded, TooLate
from serving.service import NotWritten, Service

ERRORS = (InputError, Overloaded, TooLate, StoreError, NotWritten)
"""Those that are no defects."""


def refused(service: Service, error: Exception) -> Refusal | None:
    """Count an error of `ERRORS`, and say it; None for any other, which is a defect."""
    match error:
        case InputError():
            return Refusal(422, str(error))
        case Overloaded():
            service.metrics.refused.labels(reason="overload").inc()
            return Refusal(503, "too many requests wait; come again later", error.retry_after_s)
        case TooLate():
            service.metrics.refused.labels(reason="deadline").inc()
            return Refusal(503, "not answered before the deadline; come again later", 1)
        case StoreError():
            return Refusal(503, f"the store cannot be used, send it again later: {error}", 1)
        case NotWritten():
            detail = f"the log of events cannot be written ({error}), and nothing was applied; send it again later"
            return Refusal(503, detail, 10)
        case _:
            return None

"""How the calls of `feed.proto` enter a gRPC server: each is told how much of its deadline is left.

Ray hands a deployment a copy of a call's context, which has the metadata and not the deadline. Hence a piece of
metadata that the server itself adds, before Ray's copy is made.
"""

from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from serving.feed_pb2_grpc import add_FeedServicer_to_server

REMAINING = "feedline-remaining-ms"
"""Metadata of a call that has a deadline: the time until it, ms. What callers say under this name is left out."""


def register(servicer: Any, server: grpc.aio.Server) -> None:
    """Named by `grpc_servicer_functions`; in place of what protoc has made, which it calls."""
    add_FeedServicer_to_server(servicer, _Registering(server))  # pyright: ignore[reportArgumentType]


class _Registering:
    """A server that is told of handlers, and tells the real one of handlers around them."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        self._server.add_generic_rpc_handlers([_Timed(handler._method_handlers) for handler in handlers])

    def add_registered_method_handlers(self, service: str, handlers: dict[str, grpc.RpcMethodHandler]) -> None:
        """They would come before the generic ones, which have all methods."""


class _Timed(grpc.GenericRpcHandler):
    """Handlers by method, in the attribute where Ray replaces them by its own; each gets a context that tells more."""

    def __init__(self, handlers: dict[str, Any]) -> None:
        self._method_handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler = self._method_handlers.get(handler_call_details.method)
        return None if handler is None else handler._replace(unary_unary=_timed(handler.unary_unary))


def _timed(call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    async def timed(request: Any, context: Any) -> Any:
        return await call(request, _Context(context))

    return timed


class _Context:
    """A call's context, whose metadata say how much time is left."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def invocation_metadata(self) -> list[tuple[str, str]]:
        said = [pair for pair in self._context.invocation_metadata() or () if pair[0] != REMAINING]
        remaining_s = self._context.time_remaining()
        return said if remaining_s is None else [*said, (REMAINING, f"{remaining_s * 1000:.3f}")]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

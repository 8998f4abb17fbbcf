from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Source(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SOURCE_UNSPECIFIED: _ClassVar[Source]
    SOURCE_MODEL: _ClassVar[Source]
    SOURCE_TASTE: _ClassVar[Source]
    SOURCE_POPULARITY: _ClassVar[Source]

class Fallback(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FALLBACK_NONE: _ClassVar[Fallback]
    FALLBACK_DEADLINE: _ClassVar[Fallback]
    FALLBACK_STORE: _ClassVar[Fallback]

class ReasonSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_SOURCE_UNSPECIFIED: _ClassVar[ReasonSource]
    REASON_SOURCE_HISTORY: _ClassVar[ReasonSource]
    REASON_SOURCE_TASTE: _ClassVar[ReasonSource]
    REASON_SOURCE_POPULAR: _ClassVar[ReasonSource]
SOURCE_UNSPECIFIED: Source
SOURCE_MODEL: Source
SOURCE_TASTE: Source
SOURCE_POPULARITY: Source
FALLBACK_NONE: Fallback
FALLBACK_DEADLINE: Fallback
FALLBACK_STORE: Fallback
REASON_SOURCE_UNSPECIFIED: ReasonSource
REASON_SOURCE_HISTORY: ReasonSource
REASON_SOURCE_TASTE: ReasonSource
REASON_SOURCE_POPULAR: ReasonSource

class Id(_message.Message):
    __slots__ = ("number", "text")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    number: int
    text: str
    def __init__(self, number: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("text", "integer", "real", "truth")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    REAL_FIELD_NUMBER: _ClassVar[int]
    TRUTH_FIELD_NUMBER: _ClassVar[int]
    text: str
    integer: int
    real: float
    truth: bool
    def __init__(self, text: _Optional[str] = ..., integer: _Optional[int] = ..., real: _Optional[float] = ..., truth: _Optional[bool] = ...) -> None: ...

class RecommendRequest(_message.Message):
    __slots__ = ("user_id", "k", "timestamp", "exclude_seen", "context", "explain")
    class ContextEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_SEEN_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    user_id: Id
    k: int
    timestamp: int
    exclude_seen: bool
    context: _containers.MessageMap[str, Value]
    explain: bool
    def __init__(self, user_id: _Optional[_Union[Id, _Mapping]] = ..., k: _Optional[int] = ..., timestamp: _Optional[int] = ..., exclude_seen: _Optional[bool] = ..., context: _Optional[_Mapping[str, Value]] = ..., explain: _Optional[bool] = ...) -> None: ...

class RankRequest(_message.Message):
    __slots__ = ("user_id", "candidates", "timestamp", "context", "explain")
    class ContextEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    user_id: Id
    candidates: _containers.RepeatedCompositeFieldContainer[Id]
    timestamp: int
    context: _containers.MessageMap[str, Value]
    explain: bool
    def __init__(self, user_id: _Optional[_Union[Id, _Mapping]] = ..., candidates: _Optional[_Iterable[_Union[Id, _Mapping]]] = ..., timestamp: _Optional[int] = ..., context: _Optional[_Mapping[str, Value]] = ..., explain: _Optional[bool] = ...) -> None: ...

class FeedItem(_message.Message):
    __slots__ = ("item_id", "title", "categories", "score", "retrieval_score", "probability", "propensity", "reason")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    RETRIEVAL_SCORE_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    item_id: Id
    title: str
    categories: _containers.RepeatedScalarFieldContainer[str]
    score: float
    retrieval_score: float
    probability: float
    propensity: float
    reason: Reason
    def __init__(self, item_id: _Optional[_Union[Id, _Mapping]] = ..., title: _Optional[str] = ..., categories: _Optional[_Iterable[str]] = ..., score: _Optional[float] = ..., retrieval_score: _Optional[float] = ..., probability: _Optional[float] = ..., propensity: _Optional[float] = ..., reason: _Optional[_Union[Reason, _Mapping]] = ...) -> None: ...

class Reason(_message.Message):
    __slots__ = ("because", "experts", "liked_category", "source")
    class ExpertsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Shares
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Shares, _Mapping]] = ...) -> None: ...
    BECAUSE_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    LIKED_CATEGORY_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    because: _containers.RepeatedCompositeFieldContainer[Because]
    experts: _containers.MessageMap[str, Shares]
    liked_category: str
    source: ReasonSource
    def __init__(self, because: _Optional[_Iterable[_Union[Because, _Mapping]]] = ..., experts: _Optional[_Mapping[str, Shares]] = ..., liked_category: _Optional[str] = ..., source: _Optional[_Union[ReasonSource, str]] = ...) -> None: ...

class Because(_message.Message):
    __slots__ = ("item_id", "title", "share")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    item_id: Id
    title: str
    share: float
    def __init__(self, item_id: _Optional[_Union[Id, _Mapping]] = ..., title: _Optional[str] = ..., share: _Optional[float] = ...) -> None: ...

class Shares(_message.Message):
    __slots__ = ("by_expert",)
    class ByExpertEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    BY_EXPERT_FIELD_NUMBER: _ClassVar[int]
    by_expert: _containers.ScalarMap[str, float]
    def __init__(self, by_expert: _Optional[_Mapping[str, float]] = ...) -> None: ...

class RecommendResponse(_message.Message):
    __slots__ = ("user_id", "items", "source", "fallback", "variant", "model", "request_id", "latency_ms")
    class LatencyMsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    user_id: Id
    items: _containers.RepeatedCompositeFieldContainer[FeedItem]
    source: Source
    fallback: Fallback
    variant: str
    model: str
    request_id: str
    latency_ms: _containers.ScalarMap[str, float]
    def __init__(self, user_id: _Optional[_Union[Id, _Mapping]] = ..., items: _Optional[_Iterable[_Union[FeedItem, _Mapping]]] = ..., source: _Optional[_Union[Source, str]] = ..., fallback: _Optional[_Union[Fallback, str]] = ..., variant: _Optional[str] = ..., model: _Optional[str] = ..., request_id: _Optional[str] = ..., latency_ms: _Optional[_Mapping[str, float]] = ...) -> None: ...

class RankResponse(_message.Message):
    __slots__ = ("user_id", "items", "source", "fallback", "variant", "model", "request_id", "latency_ms", "unknown")
    class LatencyMsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    user_id: Id
    items: _containers.RepeatedCompositeFieldContainer[FeedItem]
    source: Source
    fallback: Fallback
    variant: str
    model: str
    request_id: str
    latency_ms: _containers.ScalarMap[str, float]
    unknown: _containers.RepeatedCompositeFieldContainer[Id]
    def __init__(self, user_id: _Optional[_Union[Id, _Mapping]] = ..., items: _Optional[_Iterable[_Union[FeedItem, _Mapping]]] = ..., source: _Optional[_Union[Source, str]] = ..., fallback: _Optional[_Union[Fallback, str]] = ..., variant: _Optional[str] = ..., model: _Optional[str] = ..., request_id: _Optional[str] = ..., latency_ms: _Optional[_Mapping[str, float]] = ..., unknown: _Optional[_Iterable[_Union[Id, _Mapping]]] = ...) -> None: ...

"""What is known of items beside their embedding: content, neighbours in the graph, and whether training has met them.

    catalogue/
        catalogue.json           names and rows of the content, the graph's config
        trained.npy              bool [I + 1]: whether the training part has met the item
        <content>.ids.npy, <content>.offsets.npy
        numbers.npy              float32 [I + 1, V], where there are some
        graph.npz                see `features.graph`

I items of the catalogue, whose indices are 1 … I; U of them are looked up at a time; V numbers describe each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
import torch
from pydantic import Field, model_validator
from torchrec import KeyedJaggedTensor

from embeddings.batch import Known, jagged
from embeddings.links import Walk
from features import manifest
from features._hash import splitmix64
from features.encoder import Encoder
from features.errors import InputError
from features.graph import Config as GraphConfig
from features.graph import Graph
from features.schema import Schema
from features.settings import Settings
from features.slices import gather_slices

ITEM, NEIGHBOURS = "item", "neighbours"
"""Keys of what is looked up in the table of items."""


def content_table(name: str) -> str:
    """What the retriever's table of a content is called; the ranker's is another."""
    return f"{name}_of_item"


class Config(Settings):
    """The section [retriever.items]."""

    content: tuple[str, ...] = ()
    """Features of the item, from [[features]], that are part of its vector: ids of bounded number, numbers, vectors."""
    graph: GraphConfig | None = None
    """The co-interaction graph; None: there is none."""
    links: bool = True
    """Whether the graph, where there is one, adds to the scores of what it joins to a history."""
    recency: float = Field(default=0.5, gt=0, le=1)
    """Weight of a step in that sum relative to the one after it."""
    neighbours: int = Field(default=0, ge=0)
    """Neighbours in the graph whose embeddings are part of an item's vector."""
    drawn: int = Field(default=0, ge=0)
    """How many of them are drawn for a batch in training; 0: all are taken."""
    cold: float = Field(default=0.0, ge=0, lt=1)
    """Share of items that a batch in training takes for new ones, so that content and graph learn to speak for them
    (DropoutNet: Volkovs et al., NIPS 2017)."""

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.neighbours and self.graph is None:
            raise ValueError(f"neighbours = {self.neighbours} needs a graph; add a section items.graph")
        if self.drawn and not self.neighbours:
            raise ValueError(f"drawn = {self.drawn} draws from no neighbours; set neighbours, or remove drawn")
        if self.graph is not None and not self.neighbours and not self.links:
            raise ValueError("items.graph is used by nothing; set links = true or neighbours")
        if self.graph is not None and self.graph.content and not self.content:
            raise ValueError("items.graph.content compares what items.content names, and it names nothing; set it")
        return self


@dataclass(frozen=True)
class Shape:
    """As much of a catalogue as a model is built from."""

    items: int
    """How many there are: I."""
    content: Mapping[str, int]
    """Rows of the table of each sparse and bag feature."""
    neighbours: int
    """Of an item, at most."""
    links: bool
    """Whether the graph adds to scores."""
    numbers: int = 0
    """Of an item's dense and vector features, all together: V."""

    @classmethod
    def of(cls, schema: Schema, config: Config) -> Self:
        """What `config` makes of a split.

        Raises:
            InputError: a name in `content` is no feature of the item, or one that the retriever cannot use.
        """
        specs = {
            spec.name: spec
            for spec in schema.features
            if spec.source.startswith("item.") and spec.source != "item.index"
        }
        rows: dict[str, int] = {}
        for name in config.content:
            if name not in specs:
                raise InputError(
                    f"retriever.items.content names '{name}', which is no feature of the item (there are: "
                    f"{', '.join(specs) or 'none'}); declare it in [[features]] with a source item.…"
                )
            if specs[name].kind in ("dense", "vector"):
                continue
            if specs[name].params.get("unbounded"):
                raise InputError(
                    f"retriever.items.content names '{name}', whose ids have no bound; name a feature of bounded ids"
                )
            if specs[name].weights is not None:
                raise InputError(
                    f"retriever.items.content names '{name}', whose ids have weights ({specs[name].weights}), which "
                    "the retriever does not know; declare the bag again without weights, and name that"
                )
            found = specs[name].rows
            assert found is not None, f"{name} has not been fitted"
            rows[name] = found
        numbers = sum(specs[name].width or 1 for name in config.content if name not in rows)
        return cls(schema.items, rows, config.neighbours, config.graph is not None and config.links, numbers)


@dataclass(frozen=True, eq=False)
class Content:
    """Ids that describe items: those of a sparse or bag feature of the item."""

    ids: np.ndarray
    """int32 [M]"""
    offsets: np.ndarray
    """int64 [I + 2]"""
    rows: int
    """Of their table."""


@dataclass(frozen=True)
class Noise:
    """What training leaves out at random, so that the model can do without it; the same on every rank."""

    step: int
    seed: int
    cold: float
    """Share of items that are taken for items that training has never met."""
    neighbours: int
    """Neighbours that are drawn of each item; 0: all of them are taken."""

    def draws(self, items: np.ndarray, stream: int) -> np.ndarray:
        """A number in [0, 1) for each item, which depends on nothing but the item, the step and the stream."""
        key = splitmix64(np.array([self.seed, self.step, stream], dtype=np.uint64))
        word = splitmix64(
            items.astype(np.uint64) ^ key[0] ^ splitmix64(key[1:2])[0] ^ splitmix64(key[2:] + key[1:2])[0]
        )
        return (word >> np.uint64(11)).astype(np.float64) / 2**53


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The items of a split; arrays may be memory-mapped."""

    trained: np.ndarray
    """bool [I + 1]"""
    content: Mapping[str, Content]
    graph: Graph | None
    neighbours: int = 0
    """How many of an item's neighbours `lookup` gives."""
    recency: float | None = None
    """Of `embeddings.links`; None: the graph adds nothing to scores."""
    numbers: np.ndarray | None = None
    """float32 [I + 1, V]: dense and vector features, end to end."""

    @classmethod
    def of(cls, encoder: Encoder, windows: pl.Series, config: Config) -> Self:
        """From what `prepare` has written.

        Args:
            encoder: of the split.
            windows: item indices of the training part, a list a window.
            config: what of it is used.

        Raises:
            InputError: see `Shape.of`.
        """
        shape = Shape.of(encoder.schema, config)
        for name in config.content:
            if name not in encoder.items.columns:
                raise InputError(
                    f"retriever.items.content names '{name}', which depends on the moment of a request; name features "
                    "that items have at any time"
                )
        content: dict[str, Content] = {}
        for name, rows in shape.content.items():
            ids, lengths = jagged(encoder.items[name])
            content[name] = Content(ids.astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]), rows)
        values, lengths = jagged(windows)
        trained = np.bincount(values, minlength=shape.items + 1) > 0
        trained[0] = False
        described = [(found.ids, found.offsets) for found in content.values()]
        if config.graph is not None and config.graph.content and not described:
            raise InputError(
                f"retriever.items.graph.content = {config.graph.content} compares items by ids, and items.content = "
                f"{list(config.content)} has numbers alone; name a sparse or bag feature, or set graph.content = 0"
            )
        graph = None if config.graph is None else Graph.of(values, lengths, shape.items, config.graph, described)
        found = [encoder.items[name].to_numpy() for name in config.content if name not in content]
        numbers = None
        if found:
            numbers = np.concatenate([column.reshape(shape.items + 1, -1) for column in found], 1, dtype=np.float32)
        return cls(trained, content, graph, config.neighbours, config.recency if shape.links else None, numbers)

    @property
    def shape(self) -> Shape:
        """What a model for it is built from."""
        rows = {name: content.rows for name, content in self.content.items()}
        numbers = 0 if self.numbers is None else self.numbers.shape[1]
        return Shape(self.items, rows, self.neighbours, links=self.recency is not None, numbers=numbers)

    def walk(self) -> Walk | None:
        """What asks the graph; None where it adds nothing to scores."""
        return None if self.graph is None or self.recency is None else Walk(self.graph, self.recency)

    @property
    def items(self) -> int:
        """How many there are: I."""
        return len(self.trained) - 1

    def save(self, folder: Path) -> None:
        """Write it to a new folder."""
        folder.mkdir()
        facts = {
            "content": {name: content.rows for name, content in self.content.items()},
            "neighbours": self.neighbours,
            "recency": self.recency,
            "graph": None if self.graph is None else self.graph.config.model_dump(mode="json"),
        }
        manifest.write_json(folder / "catalogue.json", facts)
        np.save(folder / "trained.npy", self.trained)
        for name, content in self.content.items():
            np.save(folder / f"{name}.ids.npy", content.ids)
            np.save(folder / f"{name}.offsets.npy", content.offsets)
        if self.numbers is not None:
            np.save(folder / "numbers.npy", self.numbers)
        if self.graph is not None:
            self.graph.save(folder / "graph.npz")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What was saved, memory-mapped but for the graph."""
        facts = manifest.read_json(folder / "catalogue.json")
        content = {
            name: Content(
                np.load(folder / f"{name}.ids.npy", mmap_mode="r"), np.load(folder / f"{name}.offsets.npy"), rows
            )
            for name, rows in facts["content"].items()
        }
        config = facts["graph"]
        graph = None if config is None else Graph.load(folder / "graph.npz", GraphConfig.model_validate(config))
        path = folder / "numbers.npy"
        numbers = np.load(path, mmap_mode="r") if path.exists() else None
        return cls(np.load(folder / "trained.npy"), content, graph, facts["neighbours"], facts["recency"], numbers)

    def lookup(self, items_U: np.ndarray, noise: Noise | None = None) -> Known:
        """What is known of some items.

        Keys are `item`: the row of its embedding, 0 for an item that training has not met; `neighbours`: rows of the
        items that the graph joins it to, if those are used; and a key for the ids of each content.

        Args:
            items_U: indices; int64.
            noise: what training leaves out; None: nothing.
        """
        row_U = self._rows(items_U)
        if noise is not None and noise.cold:
            row_U = np.where(noise.draws(items_U, 0) < noise.cold, 0, row_U)
        parts = {ITEM: (row_U, np.ones(len(items_U), dtype=np.int64))}
        if self.graph is not None and self.neighbours:
            parts[NEIGHBOURS] = self._neighbours(self.graph, items_U, noise)
        for name, content in self.content.items():
            start, end = content.offsets[items_U], content.offsets[items_U + 1]
            parts[name] = gather_slices(content.ids, start, end)[0], end - start
        ids = KeyedJaggedTensor(
            keys=list(parts),
            values=torch.from_numpy(np.concatenate([ids for ids, _ in parts.values()], dtype=np.int64)),
            lengths=torch.from_numpy(np.concatenate([lengths for _, lengths in parts.values()])),
        )
        return Known(ids, None if self.numbers is None else torch.from_numpy(self.numbers[items_U]))

    @cached_property
    def whole(self) -> Known:
        """`lookup` of the whole catalogue, 1 … I."""
        # It may be asked for first where nothing is trained, and be needed later where something is.
        with torch.inference_mode(mode=False):
            return self.lookup(np.arange(1, self.items + 1))

    def _neighbours(self, graph: Graph, items_U: np.ndarray, noise: Noise | None) -> tuple[np.ndarray, np.ndarray]:
        start = graph.offsets[items_U]
        end = np.minimum(graph.offsets[items_U + 1], start + self.neighbours)
        if noise is None or not noise.neighbours:
            return self._rows(gather_slices(graph.items, start, end)[0]), end - start
        degree = end - start
        first = (noise.draws(items_U, 1) * degree).astype(np.int64)
        count = np.minimum(degree, noise.neighbours)
        # Neighbours one after the other on a ring, from one that is drawn.
        place = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        ring = (np.repeat(first, count) + place) % np.repeat(np.maximum(degree, 1), count)
        return self._rows(graph.items[np.repeat(start, count) + ring]), count

    def _rows(self, items: np.ndarray) -> np.ndarray:
        """Rows of their embeddings, 0 where they have none: the graph may have met what training has not."""
        return np.where(self.trained[items], items, 0)

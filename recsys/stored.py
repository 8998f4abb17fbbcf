"""What a checkpoint has stored of a model, read without building the model: tables in blocks of rows, the rest by name.

A directory of torch.distributed.checkpoint cuts a tensor into chunks, one for each shard; a chunk is what `torch.save`
writes, a zip archive, inside one of the files. torch reads chunks whole. Here their bytes are read as streams, so
that a table takes the memory of a block, however large it is and however it was sharded.
"""

import io
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

BLOCK_ROWS = 16_384
"""Rows of a table that are held at a time."""

_MODEL = "model"
"""What the model is called in the state that a checkpoint holds."""


class StoredModel:
    """The model in a directory of torch.distributed.checkpoint, saved by any number of ranks under any plan."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.metadata = FileSystemReader(directory).read_metadata()

    def fill(self, tensors: dict[str, Tensor]) -> None:
        """Read whole tensors in place, by their names in the unsharded state dict."""
        load({_MODEL: tensors}, checkpoint_id=self.directory, no_dist=True)

    def shape(self, name: str) -> tuple[int, int]:
        """Rows and columns of a table."""
        rows, columns = self._tensor(name).size
        return rows, columns

    def blocks(self, name: str, block_rows: int = BLOCK_ROWS) -> Iterator[Tensor]:
        """A table from its first row to its last; float32 [at most `block_rows`, D] each."""
        tensor = self._tensor(name)
        rows, columns = tensor.size
        with ExitStack() as files:
            streams: dict[int, IO[bytes]] = {}
            for first in range(0, rows, block_rows):
                block = torch.empty(min(block_rows, rows - first), columns)
                for number, chunk in enumerate(tensor.chunks):
                    (row, column), (height, width) = chunk.offsets, chunk.sizes
                    low, high = max(row, first), min(row + height, first + len(block))
                    if low >= high:
                        continue
                    if number not in streams:
                        streams[number] = files.enter_context(self._open(name, chunk))
                    part = _read(streams[number], (high - low, width), tensor.properties.dtype)
                    block[low - first : high - first, column : column + width] = part
                    if high == row + height:
                        streams.pop(number).close()
                yield block

    def _tensor(self, name: str) -> TensorStorageMetadata:
        tensor = self.metadata.state_dict_metadata[f"{_MODEL}.{name}"]
        assert isinstance(tensor, TensorStorageMetadata), f"{name} is no tensor"
        covered = sum(chunk.sizes.numel() for chunk in tensor.chunks)
        assert covered == tensor.size.numel(), f"{name} is not whole in {self.directory}"
        return tensor

    def _open(self, name: str, chunk: ChunkStorageMetadata) -> IO[bytes]:
        """The numbers of a chunk, row after row."""
        place = self.metadata.storage_data[MetadataIndex(f"{_MODEL}.{name}", chunk.offsets)]
        assert not place.transform_descriptors, f"{name} is compressed or encrypted"
        archive = ZipFile(io.BufferedReader(_Section(self.directory / place.relative_path, place.offset, place.length)))
        (storage,) = (entry for entry in archive.namelist() if entry.split("/")[1:] == ["data", "0"])
        return archive.open(storage)


def _read(stream: IO[bytes], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The next rows of a stream."""
    raw = torch.empty(shape[0] * shape[1] * dtype.itemsize, dtype=torch.uint8)
    assert stream.readinto(raw.numpy()) == len(raw), "a chunk ends before its last row"  # pyright: ignore[reportAttributeAccessIssue]
    return raw.view(dtype).view(shape)


class _Section(io.RawIOBase):
    """Some bytes of a file, as a file of their own."""

    def __init__(self, path: Path, offset: int, length: int) -> None:
        self.file = path.open("rb", buffering=0)
        self.offset, self.length, self.at = offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.length}[whence]
        self.at = start + offset
        return self.at

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer)[: max(self.length - self.at, 0)]
        self.file.seek(self.offset + self.at)
        count = self.file.readinto(view)
        self.at += count
        return count

    def close(self) -> None:
        self.file.close()
        super().close()

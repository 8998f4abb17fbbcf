"""The kernel for CPUs beside fbgemm's own: the same tables and accumulators, up to the order of sums."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from embeddings import rowwise_adagrad

B = 33
ROWS = (50, 7, 5000)
WIDTHS = (8, 20, 64)
FEATURE_TABLE = [0, 0, 1, 2]
"""The first two features share a table."""


def kernel(pooling: PoolingMode, widths: tuple[int, ...]) -> Any:
    torch.manual_seed(1)
    made = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, width, EmbeddingLocation.HOST, ComputeDevice.CPU) for rows, width in zip(ROWS, widths, strict=True)],
        feature_table_map=FEATURE_TABLE,
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.1,
        eps=1e-8,
        pooling_mode=pooling,
    )
    for weight in made.split_embedding_weights():
        weight.data.copy_(torch.randn(weight.shape))
    return made


def batches(weighted: bool) -> list[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(7)
    found = []
    for _ in range(4):
        lengths = torch.randint(0, 6, (len(FEATURE_TABLE) * B,), generator=generator)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        ids = torch.cat(
            [
                torch.randint(0, ROWS[table], (int(lengths[f * B : (f + 1) * B].sum()),), generator=generator)
                for f, table in enumerate(FEATURE_TABLE)
            ]
        )
        weights = torch.rand(len(ids), generator=generator) if weighted else None
        found.append((ids, offsets, weights, generator.initial_seed()))
    return found


def trained(pooling: PoolingMode, widths: tuple[int, ...], weighted: bool, dtype: torch.dtype) -> list[torch.Tensor]:
    module = kernel(pooling, widths)
    for step, (ids, offsets, weights, _) in enumerate(batches(weighted)):
        out = module(ids.to(dtype), offsets.to(dtype), weights)
        out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(step)))
        module.set_learning_rate(0.1 / (step + 1))
    return [*(w.detach() for w in module.split_embedding_weights()), *(s[0] for s in module.split_optimizer_states())]


CASES = [
    (PoolingMode.SUM, WIDTHS, False, torch.int64),
    (PoolingMode.SUM, WIDTHS, True, torch.int32),
    (PoolingMode.MEAN, WIDTHS, False, torch.int64),
    (PoolingMode.NONE, (16, 16, 16), False, torch.int64),
]


def of_fbgemm() -> list[list[np.ndarray]]:
    """What the kernel makes of every case that a process begins with."""
    assert not rowwise_adagrad.install.cache_info().currsize, "fbgemm's kernel has been replaced already"
    return [[tensor.numpy() for tensor in trained(*case)] for case in CASES]


@pytest.fixture(scope="module")
def theirs() -> list[list[torch.Tensor]]:
    """What fbgemm's kernel makes of every case, in a process where nothing has replaced it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        found = process.submit(of_fbgemm).result()
    return [[torch.from_numpy(array) for array in case] for case in found]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_it_does_what_fbgemm_does(theirs: list[list[torch.Tensor]], case: int, threads: int):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rowwise_adagrad.install()
    ours = trained(*CASES[case])
    torch.set_num_threads(before)
    for mine, other in zip(ours, theirs[case], strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-5)

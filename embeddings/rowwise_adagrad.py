"""Row-wise Adagrad on CPU: the update of fused tables, several times faster than fbgemm's.

fbgemm's kernel for CPUs takes two thirds of the time of a DLRM's step. This one does the same sums: occurrences of a
row are found by a radix sort, their gradients added up, and rows fetched from memory ahead of their turn. It takes the
place of fbgemm's under torch's dispatcher, so that TorchRec's modules, states and checkpoints stay what they are:

    rowwise_adagrad.install()

Method: Duchi et al., JMLR 2011, with one accumulator for a row, the mean square of its gradients. What it gains is
measured by `benchmarks/bench_training.py`.

T features, B rows of the batch, N ids in all, D width of a table, P threads.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

POOLED = "split_embedding_backward_codegen_rowwise_adagrad_cpu"
SEQUENCES = "split_embedding_nobag_backward_codegen_rowwise_adagrad_cpu"
"""fbgemm's operators, for bags and where every id keeps its vector."""

_SUM, _MEAN, _NONE = 0, 1, 2
"""fbgemm's pooling modes; NONE: a gradient for every id."""

_AHEAD = 8
"""Rows between the one that is updated and the one that is fetched from memory."""

_LINE = 16
"""float32 numbers in a cache line."""

_DIGIT = 11
"""Bits that are sorted at a time."""

# Sums within a row may be taken in any order, which lets them use vector registers; all else is as written.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz"},
}

_libraries: list[torch.library.Library] = []
"""A registration lives as long as its library."""


@functools.cache
def install() -> None:
    """Use this kernel wherever this process would use fbgemm's for CPUs, but for what only those can do."""
    library = torch.library.Library("fbgemm", "FRAGMENT")
    for name in (POOLED, SEQUENCES):
        theirs = torch.library.get_kernel(f"fbgemm::{name}", "CPU")
        schema = getattr(torch.ops.fbgemm, name).default._schema
        library.impl(name, _instead_of(theirs, schema), "CPU", with_keyset=True, allow_override=True)
    _libraries.append(library)


def _instead_of(theirs: Any, schema: torch.FunctionSchema) -> Callable[..., None]:
    """An implementation of fbgemm's operator that leaves 16-bit weights, weight decay and norms to fbgemm's own."""
    names = [argument.name for argument in schema.arguments]
    defaults = {argument.name: argument.default_value for argument in schema.arguments}

    def update(keys: Any, *values: Any) -> None:
        given: dict[str, Any] = defaults | dict(zip(names, values, strict=False))
        weights, grad = given["host_weights"], given["grad_output"]
        plain = weights.dtype == grad.dtype == torch.float32 and not given["weight_decay"] and not given["max_norm"]
        if not plain:
            theirs.call_boxed(keys, *values)
            return
        features = len(given["weights_offsets"])
        apply(
            grad=grad,
            weights=weights,
            weight_offsets=given["weights_offsets"],
            columns=given["D_offsets"] if "D_offsets" in given else torch.arange(features + 1) * given["D"],
            ids=given["indices"],
            offsets=given["offsets"],
            pooling=given.get("pooling_mode", _NONE),
            id_weights=given.get("indice_weights"),
            state=given["momentum1_host"],
            state_offsets=given["momentum1_offsets"],
            rate=float(given["learning_rate_tensor"]),
            eps=given["eps"],
        )

    return update


def apply(
    *,
    grad: Tensor,
    weights: Tensor,
    weight_offsets: Tensor,
    columns: Tensor,
    ids: Tensor,
    offsets: Tensor,
    pooling: int,
    id_weights: Tensor | None,
    state: Tensor,
    state_offsets: Tensor,
    rate: float,
    eps: float,
) -> None:
    """Update tables and their accumulators in place; the same result for any number of threads.

    Args:
        grad: float32 [B, sum of D], or [N, D] where nothing is pooled.
        weights: float32, all tables end to end.
        weight_offsets: int64 [T], where each feature's table begins; features that share a table have the same.
        columns: int32 [T + 1], where each feature's columns of `grad` begin.
        ids: int32 or int64 [N], feature after feature.
        offsets: of the same type [T·B + 1], where each bag begins.
        pooling: fbgemm's mode.
        id_weights: float32 [N]; None: all 1.
        state: float32, the accumulators of all tables end to end.
        state_offsets: int64 [T].
        rate: learning rate.
        eps: numerical floor.
    """
    weight_N = np.empty(0, np.float32) if id_weights is None else id_weights.detach().numpy()
    threads = 1 << (torch.get_num_threads().bit_length() - 1)  # a power of 2
    arguments = (
        *(grad.detach().contiguous().view(-1).numpy(), weights.detach().numpy(), weight_offsets.numpy()),
        *(columns.to(torch.int64).numpy(), ids.numpy(), offsets.numpy(), pooling, weight_N),
        *(state.detach().numpy(), state_offsets.numpy(), np.float32(rate), np.float32(eps), threads),
    )
    if threads == 1:
        _update(*arguments, 0)
        return
    for ended in [_pool(threads).submit(_update, *arguments, part) for part in range(threads)]:
        ended.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="rowwise_adagrad")


@intrinsic
def _prefetch(context: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of array[index], to be written soon."""
    del context, index
    signature = types.void(array, types.intp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        memory = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        llvm = cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0i8")
        place = builder.bitcast(builder.gep(memory, [arguments[1]]), byte)
        to_write, keep_near, data = (ir.Constant(word, value) for value in (1, 3, 1))
        builder.call(llvm, [place, to_write, keep_near, data])
        return context.get_dummy_value()

    return signature, generate


@njit(**_OPTIONS)
def _update(
    grad,
    weights,
    weight_offsets,
    columns,
    ids,
    offsets,
    pooling,
    id_weights,
    state,
    state_offsets,
    rate,
    eps,
    threads,
    part,
):
    """The rows whose number is `part` modulo `threads`, of all tables."""
    features = len(weight_offsets)
    bags = (len(offsets) - 1) // features
    width = columns[features]
    weighted = len(id_weights) > 0
    # Room for the fullest table, if all of its occurrences are this thread's.
    most = 0
    for f in range(features):
        held = 0
        for g in range(features):
            if weight_offsets[g] == weight_offsets[f]:
                held += offsets[(g + 1) * bags] - offsets[g * bags]
        most = max(most, held)
    rows, rows_aside = np.empty(most, np.int64), np.empty(most, np.int64)
    order, order_aside = np.empty(most, np.int32), np.empty(most, np.int32)
    source, scale = np.empty(most, np.int64), np.empty(most, np.float32)
    total = np.empty(width, np.float32)
    for f in range(features):
        is_first = True
        for g in range(f):
            is_first = is_first and weight_offsets[g] != weight_offsets[f]
        if not is_first:
            continue
        found = 0
        largest = 0
        for g in range(f, features):
            if weight_offsets[g] != weight_offsets[f]:
                continue
            for bag in range(bags):
                begin, end = offsets[g * bags + bag], offsets[g * bags + bag + 1]
                share = np.float32(1.0)
                if pooling == _MEAN and end > begin:
                    share = np.float32(1.0) / np.float32(end - begin)
                for at in range(begin, end):
                    row = ids[at]
                    if row & (threads - 1) != part:
                        continue
                    rows[found] = row
                    order[found] = found
                    source[found] = at * (columns[1] - columns[0]) if pooling == _NONE else bag * width + columns[g]
                    scale[found] = share * id_weights[at] if weighted else share
                    largest = max(largest, row)
                    found += 1
        dim = columns[f + 1] - columns[f]
        keys, places = _sorted(rows, order, rows_aside, order_aside, found, largest)
        table, accumulator = weight_offsets[f], state_offsets[f]
        at = 0
        while at < found:
            if at + _AHEAD < found:
                coming = keys[at + _AHEAD]
                _prefetch(state, accumulator + coming)  # pyright: ignore[reportCallIssue] - numba gives the context
                for d in range(0, dim, _LINE):
                    _prefetch(weights, table + coming * dim + d)  # pyright: ignore[reportCallIssue]
            row = keys[at]
            begin, times = source[places[at]], scale[places[at]]
            for d in range(dim):
                total[d] = times * grad[begin + d]
            at += 1
            while at < found and keys[at] == row:
                begin, times = source[places[at]], scale[places[at]]
                for d in range(dim):
                    total[d] += times * grad[begin + d]
                at += 1
            square = np.float32(0.0)
            for d in range(dim):
                square += total[d] * total[d]
            state[accumulator + row] += square / np.float32(dim)
            factor = rate / (np.sqrt(state[accumulator + row]) + eps)
            first = table + row * dim
            for d in range(dim):
                weights[first + d] -= factor * total[d]


@njit(**_OPTIONS)
def _sorted(keys, values, keys_aside, values_aside, count, largest):
    """The first `count` keys in order, and their values, equal keys as they were: in one of the two pairs of arrays."""
    starts = np.empty((1 << _DIGIT) + 1, np.int64)
    mask = (1 << _DIGIT) - 1
    shift = 0
    while largest >> shift:
        starts[:] = 0
        for i in range(count):
            starts[((keys[i] >> shift) & mask) + 1] += 1
        for digit in range(1 << _DIGIT):
            starts[digit + 1] += starts[digit]
        for i in range(count):
            digit = (keys[i] >> shift) & mask
            to = starts[digit]
            starts[digit] = to + 1
            keys_aside[to], values_aside[to] = keys[i], values[i]
        keys, keys_aside = keys_aside, keys
        values, values_aside = values_aside, values
        shift += _DIGIT
    return keys, values

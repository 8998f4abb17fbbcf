"""One pure Polars expression family a file; the file name is what a config calls it.

A transform has

    YIELDS                                  the kinds of feature that it makes: sparse, bag, dense, vector
    Params                                  its parameters
    fit(data, params) -> state              what it learns of the training part, as JSON
    expr(source, dtype, params, state)      the expression; the same answer for one row as for many, never null:
                                            Int32, List(Int32), Float32 or Array(Float32, width)
    rows(params, state)                     sparse, bag: rows of the embedding table, indices are 0 … rows - 1
    width(params, state)                    vector: how many numbers
    inputs(source, params)                  only where it reads more than the source: all columns, the source first
    now(inputs, params, state)              the same of arrays, for requests, bit by bit: float64 with NaN for what is
                                            missing (int32 for features of features) → float32 or int32
    tail(params)                            only where it cuts lists: how many of the last elements count
    MEMO = True                             in place of `now`, where the index of a value depends on that value alone
                                            and there are few enough of them to be worth keeping

`dtype` is the source's type in the frame at hand; where a frame lacks the column, it comes as `pl.Null`.
"""

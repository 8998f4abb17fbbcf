"""One pure Polars expression family a file: `YIELDS`, `Params`, `fit`, `expr`, and `rows` where it yields indices."""

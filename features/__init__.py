"""The data's vocabulary: events, schema, time. Polars and PyArrow only."""

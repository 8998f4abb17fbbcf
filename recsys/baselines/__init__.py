"""Retrievers that count instead of learn: `Config`, and `fit(config, interactions, items) -> Scorer`.

A baseline is one file here; every run measures all of them beside its own retriever.
"""

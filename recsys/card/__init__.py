"""The system card of a run: what it is, for people who are no engineers, from what its stages have left.

    recsys card configs/quickstart/ml-100k.toml

In the manner of Meta's system cards (https://ai.meta.com/tools/system-cards/): what a system is for, what it looks at,
how well it does and for whom, where it fails, and what a person can do about it.
Nothing about a particular run is written by hand. `content` finds it, `page` says it.
"""

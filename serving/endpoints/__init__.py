"""One group of endpoints a file: `router`, a FastAPI router that reaches the replica's service through `Serving`."""

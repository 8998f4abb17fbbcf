"""One source of logs a file: `Config`, `inputs(config)`, `load(config) -> RawLog`."""

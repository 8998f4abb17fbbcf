"""What can be replayed, one kind a file: `Config`, and `run(config, path, directory, progress)`."""

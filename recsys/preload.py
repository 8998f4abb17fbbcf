"""What training processes import, once, in the server that they are forked from."""

import importlib

from recsys.console import quiet

# The libraries warn while they are imported.
quiet()
importlib.import_module("recsys.train")

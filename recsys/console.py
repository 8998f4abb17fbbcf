"""Where progress and messages go, and how the libraries are kept from talking over them."""

import logging
import os
import warnings

from rich.console import Console

console = Console(stderr=True)
"""Progress and messages; stdout is for results."""

CHATTY = ("ray", "torch", "torch.fx._symbolic_trace", "torchrec")
"""Loggers whose warnings concern their developers."""


def quiet() -> None:
    """Keep the libraries' own warnings off stderr, unless the user asks for them with FEEDLINE_DEBUG=1."""
    if os.environ.get("FEEDLINE_DEBUG") == "1":
        return
    warnings.simplefilter("ignore")
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)

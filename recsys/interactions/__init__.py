"""Interaction modules: what features say together. One file each, one contract, see `_contract`."""

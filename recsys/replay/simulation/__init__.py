"""Policies before simulated people whose preferences are known: `recsys.replay.kinds.simulated` puts it together."""

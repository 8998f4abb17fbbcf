"""Estimators of what a policy would have earned, from what another did: a file each, named as configs say."""

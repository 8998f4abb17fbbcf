"""Replay of a log through the recommender that serves."""

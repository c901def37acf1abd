"""Scores of frozen encoders, always beside the same encoder untrained and raw pixels."""

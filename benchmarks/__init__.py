"""Measurements: each one command, figures as ratios inside one run."""

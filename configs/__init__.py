"""Experiment configs: one lab-book file per family of published rows."""

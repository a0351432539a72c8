"""Learners: adaptation and prediction for one task."""

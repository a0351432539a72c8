"""Data sets as packed banks, episodes drawn from them, and their readers."""

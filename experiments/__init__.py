"""Entry points: run as `python experiments/<name>.py`."""

"""This project timed against what a user would otherwise pick; `python -m benchmark` runs it."""

"""The tests by subject; `unittests.py` runs them, and holds the gradient checks itself."""

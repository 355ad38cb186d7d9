"""Tollkeeper beside what others run in its place: `make bench-peers`. Each has an environment of its own, never .venv."""

"""Costs of Tollkeeper, against named baselines in the same run. `make bench`; never part of the tests."""

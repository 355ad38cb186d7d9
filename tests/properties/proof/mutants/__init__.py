"""The money core with one thing changed at a time: a test must fail, or explained.toml say why none does."""

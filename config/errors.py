"""The one error of this package."""


class ConfigError(Exception):
    """The configuration cannot be used; the message names file, key, reason and fix."""

    def __init__(self, where: str, key: str, reason: str, fix: str) -> None:
        """Take `where`: a file name or `environment`; `key`: dotted."""
        super().__init__(f"{where}: {key}: {reason}. Fix: {fix}")
        self.where, self.key, self.reason, self.fix = where, key, reason, fix

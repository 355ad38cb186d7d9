"""The error of this package, and several of them at once."""

from collections.abc import Sequence


class ConfigError(Exception):
    """The configuration cannot be used; the message names file, line, key, reason and fix."""

    def __init__(self, where: str, key: str, reason: str, fix: str, line: int | None = None) -> None:
        """Take `where`: a file name or `environment`; `key`: dotted; `line`: of the file, from 1, where it has one."""
        place = where if line is None else f"{where}:{line}"
        super().__init__(f"{place}: {key}: {reason}. Fix: {fix}")
        self.where, self.key, self.reason, self.fix, self.line = where, key, reason, fix, line

    @property
    def problems(self) -> tuple["ConfigError", ...]:
        """Every problem there is: this one."""
        return (self,)


class ConfigErrors(ConfigError):
    """Several problems, in the order of the file; in place, key, reason and fix it is the first of them."""

    def __init__(self, problems: Sequence[ConfigError]) -> None:
        """Take two `problems` or more."""
        first = problems[0]
        super().__init__(first.where, first.key, first.reason, first.fix, first.line)
        self._problems = tuple(problems)

    @property
    def problems(self) -> tuple[ConfigError, ...]:
        """Every problem there is."""
        return self._problems

    def __str__(self) -> str:
        """One line for each."""
        return "\n".join(str(problem) for problem in self._problems)


def raise_problems(problems: Sequence[ConfigError]) -> None:
    """Raise ConfigError when there is a problem, ConfigErrors when there are several."""
    if problems:
        raise problems[0] if len(problems) == 1 else ConfigErrors(problems)

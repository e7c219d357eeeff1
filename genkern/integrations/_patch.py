"""Attributes of other people's classes, replaced and put back."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NamedTuple

_ABSENT = object()


class Change(NamedTuple):
    """One attribute to replace."""

    owner: Any
    name: str
    value: Any


class Patch:
    """A set of changes: in force from `apply` to `revert`, or to the end of a `with` block.

    Args:
        logger: Told once of each change.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        # For each `apply` that is in force, what was there before.
        self._saved: list[list[Change]] = []

    def apply(self, changes: Iterable[Change]) -> Applied:
        """Puts new values in place."""
        saved = []
        for owner, name, value in changes:
            saved.append(Change(owner, name, vars(owner).get(name, _ABSENT)))
            setattr(owner, name, value)
            say_once(self._logger, logging.INFO, f"replaced {_path(owner)}.{name}")
        self._saved.append(saved)
        return Applied(self, len(self._saved))

    def revert(self, depth: int = 0) -> None:
        """Puts back what was there before; all of it, or what came after the first `depth`."""
        while len(self._saved) > depth:
            for owner, name, value in reversed(self._saved.pop()):
                if value is _ABSENT:
                    delattr(owner, name)
                else:
                    setattr(owner, name, value)


class Applied:
    """What `apply` returns: as a context manager, it reverts at the end of the block."""

    def __init__(self, patch: Patch, depth: int) -> None:
        self._patch, self._depth = patch, depth

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._patch.revert(self._depth - 1)


def _path(owner: Any) -> str:
    module = getattr(owner, "__module__", None)
    return f"{module}.{owner.__qualname__}" if module else str(owner.__name__)


@functools.cache
def say_once(logger: logging.Logger, level: int, message: str) -> None:
    """Logs a message the first time it comes."""
    logger.log(level, message)

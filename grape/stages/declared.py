"""Of params.yaml a stage is handed what its entry in dvc.yaml declares: a knob that DVC does not compare cannot be read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from grape.errors import GrapeError


class Grant:
    """What one stage may read, and what it has read, as dotted keys."""

    def __init__(self, stage: str, keys: Iterable[str], read: set[str]) -> None:
        self.stage, self.keys, self.read = stage, frozenset(keys), read

    def covers(self, key: str) -> bool:
        return any(key == declared or key.startswith(f"{declared}.") for declared in self.keys)

    def within(self, key: str) -> bool:
        """Whether anything at or below `key` is declared."""
        return self.covers(key) or any(declared.startswith(f"{key}.") for declared in self.keys)

    def take(self, key: str) -> None:
        """Note that `key` is read.

        Raises:
            GrapeError: dvc.yaml does not declare it for this stage.
        """
        if not self.covers(key):
            raise GrapeError(
                f"the stage {self.stage} reads {key or 'all of params.yaml'}, which it does not declare: "
                "a change of it would re-run nothing",
                where=f"dvc.yaml, stages.{self.stage.partition('@')[0]}.params",
                mend=f"add `- {key}` there" if key else "read the keys one by one",
            )
        self.read.add(key)


class Declared:
    """A section of params.yaml, as it is: the same attributes, of which the undeclared ones are refused."""

    __slots__ = ("_section", "_grant", "_place")

    def __init__(self, section: Any, grant: Grant, place: str = "") -> None:
        self._section, self._grant, self._place = section, grant, place

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # what `copy` and the like look for
        value = getattr(self._section, name)
        if name not in type(self._section).model_fields:
            self._grant.take(self._place)  # a method sees the whole section
            return value
        key = f"{self._place}.{name}" if self._place else name
        if isinstance(value, BaseModel):
            if not self._grant.within(key):
                self._grant.take(key)
            return Declared(value, self._grant, key)
        self._grant.take(key)
        return value


class DeclaredParams(Declared):
    """All of params.yaml. An algorithm and its knobs are the key `algorithms.NAME`."""

    __slots__ = ()

    def slot(self, name: str) -> Any:
        self._grant.take(f"algorithms.{name}")
        return self._section.slot(name)

    def algorithm(self, name: str) -> Any:
        self._grant.take(f"algorithms.{name}")
        return self._section.algorithm(name)

"""Frozen records of tensors. A field is declared with its dimensions, `mask: Annotated[Tensor, "B T"]`, and that is all that is
said of it: shapes are checked, rows selected, records joined and moved by what the declarations say.

A field that was not computed is not there. Reading it fails with its name, so no equation has to ask first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self, get_type_hints

import torch
from torch import Tensor


def absent() -> Any:
    """The default of a field that is there only when somebody needs it."""
    return field(default_factory=lambda: None)


_KNOWN: dict[object, Mapping[str, tuple[str, ...]]] = {}


def dimensions(kind: type[Tensors]) -> Mapping[str, tuple[str, ...]]:
    """Of every tensor field of a record: its dimensions by name, `("B", "T")`."""
    if kind not in _KNOWN:
        hints = get_type_hints(kind, include_extras=True)
        declared = {place.name: getattr(hints[place.name], "__metadata__", None) for place in fields(kind)}
        _KNOWN[kind] = {name: tuple(dims[0].split()) for name, dims in declared.items() if dims}
    return _KNOWN[kind]


@dataclass(frozen=True, eq=False, repr=False)
class Tensors:
    """A record of tensors; those with rows have the dimension B first."""

    def __post_init__(self) -> None:
        sizes: dict[str, int] = {}
        for name, dims in dimensions(type(self)).items():
            value = self.__dict__[name]
            if value is None:
                del self.__dict__[name]
            elif len(dims) != value.dim() or any(sizes.setdefault(d, n) != n for d, n in zip(dims, value.shape, strict=True)):
                expected = tuple(sizes.get(d, d) for d in dims)
                raise ValueError(f"{type(self).__name__}.{name} is {tuple(value.shape)}, expected ({', '.join(dims)}) = {expected}")

    if not TYPE_CHECKING:  # else every name would be one that a type checker takes

        def __getattr__(self, name: str) -> Any:
            known = name in dimensions(type(self))
            why = ": it was not computed, since no need of the algorithm asks for it" if known else ""
            raise AttributeError(f"{type(self).__name__} has no {name}{why}")

    def get(self, name: str) -> Tensor | None:
        """A field that need not be there; None where it is not."""
        found: Tensor | None = self.__dict__.get(name)
        return found

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        return {name: self.__dict__[name] for name in dimensions(type(self)) if name in self.__dict__}

    def with_(self, **changes: object) -> Self:
        """The record with other fields; None takes one away."""
        return type(self)(**{**self.__dict__, **changes})

    @classmethod
    def of(cls, other: Tensors, **more: object) -> Self:
        """A record of this kind: what `other` has of its fields, and more."""
        names = {place.name for place in fields(cls)}
        return cls(**{**{name: value for name, value in other.__dict__.items() if name in names}, **more})

    def select(self, index: Tensor | slice) -> Self:
        """The rows `index`."""
        rows = {name: x for name, x in self.tensors().items() if dimensions(type(self))[name][0] == "B"}
        return self.with_(**{name: x[index] for name, x in rows.items()})

    def join(self, more: Self) -> Self:
        """These rows, then those of `more`."""
        return self.with_(**{name: torch.cat([x, more.tensors()[name]]) for name, x in self.tensors().items()})

    def to(self, device: torch.device | str) -> Self:
        return self.with_(**{name: x.to(device) for name, x in self.tensors().items()})

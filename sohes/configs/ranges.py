# SPDX-License-Identifier: Apache-2.0
"""Ranges of numbers, declared in the type of a field: `num_steps: Annotated[int, at_least(1)] = 2000`.

The range of a tuple holds for each item. None, where a field may be None, has no range.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class Range:
    """The numbers from `ge` (included) or `gt` (excluded) to `le` (included) or `lt` (excluded), and the number `also`.

    The names are those of pydantic and annotated-types.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    also: float | None = None

    def __post_init__(self) -> None:
        if (self.ge is None) == (self.gt is None) or None not in (self.le, self.lt):
            raise ValueError("expected ge or gt, and at most one of le and lt")

    def __contains__(self, value: float) -> bool:
        """False for NaN."""
        is_high = value >= self.ge if self.ge is not None else self.gt is not None and value > self.gt
        is_low = value <= self.le if self.le is not None else self.lt is None or value < self.lt
        return value == self.also or (is_high and is_low)

    def __str__(self) -> str:
        """`>= 1`, `> 0`, `0 to 1`, `> 0 to 1`, `0 to below 1`, `0 or >= 32`."""
        is_bounded = self.le is not None or self.lt is not None
        text = f"> {self.gt}" if self.ge is None else f"{'' if is_bounded else '>= '}{self.ge}"
        if is_bounded:
            text += f" to {self.le}" if self.lt is None else f" to below {self.lt}"
        return text if self.also is None else f"{self.also} or {text}"


def at_least(low: float) -> Range:
    """`low` or more."""
    return Range(ge=low)


def above(low: float) -> Range:
    """More than `low`."""
    return Range(gt=low)


def between(low: float, high: float) -> Range:
    """`low` to `high`, both included."""
    return Range(ge=low, le=high)


def field_ranges(cls: type[DataclassInstance]) -> Mapping[str, Range]:
    """The range of each field of a dataclass that has one."""
    hints = typing.get_type_hints(cls, include_extras=True)
    metadata = {field.name: getattr(hints[field.name], "__metadata__", ()) for field in dataclasses.fields(cls)}
    return {name: entry for name, entries in metadata.items() for entry in entries if isinstance(entry, Range)}


def out_of_range(config: DataclassInstance, prefix: str = "") -> Iterator[str]:
    """A line `name = value, expected RANGE` for each number of a dataclass, and of those in it, out of its range."""
    ranges = field_ranges(type(config))
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from out_of_range(value, f"{name}.")
        elif field.name in ranges and not fits(value, ranges[field.name]):
            yield f"{name} = {show(value)}, expected {ranges[field.name]}"


def fits(value: float | tuple[float, ...] | None, allowed: Range) -> bool:
    """Whether a number, or each of several, is in a range; None always is."""
    numbers = value if isinstance(value, tuple) else (value,)
    return all(number is None or number in allowed for number in numbers)


def show(value: float | tuple[float, ...]) -> str:
    """A number, or several separated by spaces, as a command line has them."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)

# SPDX-License-Identifier: Apache-2.0
"""The layout of a scene: the backdrop, and composite objects of random position, size, rotation and colour."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from sohes.data.scene_objects import FAMILIES, Outline, Part, abstract, box
from sohes.data.scene_paint import Look, contrasting, random_colours, random_look, shifted

MIN_PART = 30  # pixels; smaller parts are not drawn


@dataclass
class Node:
    """A part placed in the scene. Nodes are numbered in painting order, parents before children, so that a node and its
    descendants have the numbers from its own to `last`."""

    outline: Outline | None  # [n, 2], in pixels of the final image
    parent: int
    look: Look
    centre: tuple[float, float]  # of its object
    extent: float  # half the size of its object, in pixels
    last: int = -1


def backdrop_nodes(rng: Generator, size: int) -> list[Node]:
    """The nodes of the backdrop: one surface, or two that meet at a straight, tilted or wavy line."""
    colours = [random_colours(rng, 1)[0]]
    outlines = [box(0, 0, size, size)]
    if rng.random() < 0.65:
        colours.append(contrasting(random_colours(rng, 4), colours))
        x = np.linspace(0, size, 24)
        wave = rng.uniform(0, 0.04) * np.sin(x / size * rng.uniform(3, 9) + rng.uniform(0, 6))
        line = size * (rng.uniform(0.35, 0.7) + rng.uniform(-0.12, 0.12) * (x / size - 0.5) + wave)
        corners = [(size, size), (0, size)]
        outlines.append(np.concatenate([np.stack([x, line], axis=-1), corners]))
    looks = [random_look(rng, colour, size * 0.6, rng.uniform(0.05, 0.14)) for colour in colours]
    middle = (size / 2, size / 2)
    return [
        Node(outline, -1, look, middle, size / 2, last=number)
        for number, (outline, look) in enumerate(zip(outlines, looks, strict=True))
    ]


def object_nodes(rng: Generator, size: int, backdrop: list[np.ndarray]) -> list[Node]:
    """The nodes of 3 to 7 objects, far ones first; an object lower in the image is nearer."""
    count = int(rng.integers(3, 8))
    extents = size * np.exp(rng.uniform(np.log(0.13), np.log(0.3), count))
    extents[0] = size * rng.uniform(0.26, 0.42)
    centres: list[np.ndarray] = []
    for extent in extents:
        candidates = rng.uniform(0.1 * size, 0.9 * size, (10, 2))
        crowding = [_crowding(place, extent, centres, extents) for place in candidates]
        centres.append(candidates[int(np.argmin(crowding))])
    nodes: list[Node] = []
    taken = list(backdrop)
    for index in np.argsort([centre[1] + extent for centre, extent in zip(centres, extents, strict=True)]):
        family = FAMILIES[rng.integers(len(FAMILIES))]
        colour = contrasting(random_colours(rng, 5), taken)
        taken.append(colour)
        free = family is abstract or rng.random() < 0.15
        angle = rng.uniform(-np.pi, np.pi) if free else rng.normal(0, 0.12)
        rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        stretch = extents[index] * rng.uniform(0.85, 1.1, 2) * (rng.choice([-1, 1]), 1)
        place = _Placement(np.diag(stretch) @ rotation, centres[index], extents[index])
        _place(rng, family(rng), -1, colour, place, backdrop, {}, nodes, len(backdrop))
    return nodes


def _crowding(place: np.ndarray, extent: float, centres: list[np.ndarray], extents: np.ndarray) -> float:
    """How much an object at `place` would overlap the other objects, >= 0."""
    return sum(
        max(0.0, (extent + other_extent - np.linalg.norm(place - other)) / min(extent, other_extent))
        for other, other_extent in zip(centres, extents, strict=False)
    )


@dataclass(frozen=True)
class _Placement:
    """The map from an object's frame to the image: points @ matrix + centre."""

    matrix: np.ndarray  # [2, 2]
    centre: np.ndarray  # [2]
    extent: float


def _place(
    rng: Generator,
    part: Part,
    parent: int,
    around: np.ndarray,
    place: _Placement,
    backdrop: list[np.ndarray],
    looks: dict[str, Look],
    nodes: list[Node],
    offset: int,
) -> None:
    """Append `part` and everything in it to `nodes`, numbered from `offset`, with colours varied around `around`."""
    if part.name not in looks:
        siblings = [look.colour for look in looks.values()]
        if parent < 0:
            colour = around
        elif rng.random() < 0.12:  # an exception: most parts resemble their parent
            colour = contrasting(random_colours(rng, 6), [around, *siblings])
        else:
            colour = contrasting(shifted(rng, around, rng.uniform(0.25, 0.4), 10), [around, *siblings[-4:], *backdrop])
        looks[part.name] = random_look(rng, colour, place.extent * 0.8, rng.uniform(0.03, 0.1))
    look = looks[part.name]
    number = offset + len(nodes)
    outline = None if part.outline is None else part.outline @ place.matrix + place.centre
    node = Node(outline, parent, look, tuple(place.centre), place.extent)
    nodes.append(node)
    for child in part.children:
        if child.outline is not None and abs(np.linalg.det(place.matrix)) * _area(child.outline) < MIN_PART:
            continue
        _place(rng, child, number, look.colour, place, backdrop, looks, nodes, offset)
    node.last = offset + len(nodes) - 1


def _area(outline: Outline) -> float:
    """The area of a closed polygon [n, 2], by the shoelace formula."""
    x, y = outline.T
    return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))

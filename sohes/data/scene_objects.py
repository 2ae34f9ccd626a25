# SPDX-License-Identifier: Apache-2.0
"""The families of composite objects in scenes: geometry and hierarchy, without colours.

An object is a tree of `Part`s in its own frame: x to the right, y down, both about -1..1. A part is painted before its
children, and earlier children before later ones, so "behind" means "listed earlier".
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

Outline = np.ndarray  # float64 [n, 2], the corners (x, y) of a closed polygon


@dataclass(frozen=True)
class Part:
    """One node of an object.

    name: parts of one object that share a name share a look (all wheels of a car).
    outline: the part's own body; None for a pure group, which is only the union of its children.
    """

    name: str
    outline: Outline | None
    children: tuple["Part", ...] = ()


def ellipse(x: float, y: float, rx: float, ry: float | None = None, corners: int = 28) -> Outline:
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return around(x, y, rx, rx if ry is None else ry, angle)


def around(x: float, y: float, rx: float | np.ndarray, ry: float | np.ndarray, angle: np.ndarray) -> Outline:
    """The points at radii `rx`, `ry` from (x, y), one per angle in radians."""
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=-1)


def box(x0: float, y0: float, x1: float, y1: float) -> Outline:
    return polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def polygon(*corners: tuple[float, float]) -> Outline:
    return np.array(corners, dtype=np.float64)


def capsule(x0: float, y0: float, x1: float, y1: float, radius: float) -> Outline:
    """A line with round ends."""
    along = np.arctan2(y1 - y0, x1 - x0)
    turn = np.linspace(-np.pi / 2, np.pi / 2, 8)
    near, far = along + np.pi + turn, along + turn
    ends = [(x1, y1, far), (x0, y0, near)]
    return np.concatenate([around(x, y, radius, radius, a) for x, y, a in ends])


def ring(x: float, y: float, outer: float, inner: float, start: float, stop: float) -> Outline:
    """A band of a circle from angle `start` to `stop`, in radians."""
    angle = np.linspace(start, stop, 18)
    return np.concatenate([around(x, y, outer, outer, angle), around(x, y, inner, inner, angle[::-1])])


def star(x: float, y: float, outer: float, inner: float, points: int, phase: float = -np.pi / 2) -> Outline:
    """A star of `points` tips; `inner == outer * cos(pi / points)` makes it a regular polygon."""
    angle = phase + np.arange(2 * points) * np.pi / points
    radius = np.where(np.arange(2 * points) % 2 == 0, outer, inner)
    return around(x, y, radius, radius, angle)


def blob(rng: Generator, x: float, y: float, radius: float) -> Outline:
    """A smooth closed curve around (x, y), 0.7 to 1.3 times `radius` away."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    wave = sum(rng.uniform(0, 0.15) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3))
    return around(x, y, radius * (1 + wave), radius * (1 + wave), angle)


def house(rng: Generator) -> Part:
    half, top = rng.uniform(0.6, 0.9), rng.uniform(-0.25, 0.1)

    def window(x: float, y: float, r: float) -> Part:
        panes = [
            box(x + a * r, y + b * r, x + (a + 0.75) * r, y + (b + 0.75) * r)
            for a in (-0.87, 0.12)
            for b in (-0.87, 0.12)
        ]
        return Part("window", box(x - r, y - r, x + r, y + r), tuple(Part("pane", pane) for pane in panes))

    side = rng.choice([-1, 1])
    door = box(side * 0.35 * half - 0.17, 0.35, side * 0.35 * half + 0.17, 1)
    knob = Part("knob", ellipse(side * 0.35 * half + 0.1, 0.7, 0.05))
    inside = [Part("door", door, (knob,)), window(-side * 0.45 * half, 0.5, rng.uniform(0.18, 0.25))]
    if rng.random() < 0.5:
        inside.append(window(side * 0.35 * half, 0.12 + top / 2, 0.14))
    flat = rng.uniform(0, 0.5)
    roof = polygon((-half - 0.15, top), (-flat * half, -1), (flat * half, -1), (half + 0.15, top))
    chimney = Part("chimney", box(side * 0.55 - 0.1, -1, side * 0.55 + 0.1, top))
    return Part("house", None, (chimney, Part("body", box(-half, top, half, 1), tuple(inside)), Part("roof", roof)))


def car(rng: Generator) -> Part:
    roof, nose = rng.uniform(-0.5, -0.3), rng.uniform(0.1, 0.35)
    shell = polygon((-1, 0.45), (-1, 0), (-0.7, 0), (-0.45, roof), (0.3, roof), (0.55, 0), (1, nose - 0.1), (1, 0.45))
    glass = roof + 0.1
    windows = (
        Part("window", polygon((-0.55, 0), (-0.38, glass), (-0.12, glass), (-0.12, 0))),
        Part("window", polygon((-0.02, 0), (-0.02, glass), (0.24, glass), (0.4, 0))),
    )
    light = Part("light", ellipse(0.9, nose + 0.02, 0.09))
    door = Part("door", box(-0.3, 0.06, 0.2, 0.42))
    wheels = tuple(Part("wheel", ellipse(x, 0.45, 0.27), (Part("hub", ellipse(x, 0.45, 0.13)),)) for x in (-0.58, 0.58))
    return Part("car", None, (Part("body", shell, (*windows, light, door)), *wheels))


def train(rng: Generator) -> Part:
    count = int(rng.integers(2, 4))
    width = 2 / count

    def wagon(index: int) -> Part:
        x0, x1 = -1 + index * width + 0.04, -1 + (index + 1) * width - 0.04
        third = (x1 - x0) / 3
        panes = tuple(
            Part("window", box(x0 + k * third + 0.06, -0.3, x0 + (k + 1) * third - 0.06, 0)) for k in range(3)
        )
        wheels = tuple(
            Part("wheel", ellipse(x, 0.45, 0.14), (Part("hub", ellipse(x, 0.45, 0.06)),))
            for x in (x0 + 0.18, x1 - 0.18)
        )
        return Part(f"wagon {index}", None, (Part(f"shell {index}", box(x0, -0.45, x1, 0.4), panes), *wheels))

    return Part("train", None, (Part("rail", box(-1, 0.25, 1, 0.35)), *map(wagon, range(count))))


def tree(rng: Generator) -> Part:
    trunk = Part("trunk", polygon((-0.14, -0.1), (0.14, -0.1), (0.2, 1), (-0.2, 1)))
    if rng.random() < 0.4:  # a fir of three tiers
        tiers = [polygon((-w, y), (0, y - 0.75), (w, y)) for w, y in ((0.8, 0.5), (0.62, 0.1), (0.45, -0.3))]
        return Part(
            "tree", None, (trunk, Part("crown", None, tuple(Part(f"tier {i}", t) for i, t in enumerate(tiers))))
        )
    angles = rng.uniform(0, 2 * np.pi) + np.arange(rng.integers(0, 6)) * 1.9
    fruits = tuple(Part("fruit", ellipse(0.4 * np.cos(a), -0.4 + 0.33 * np.sin(a), 0.12)) for a in angles)
    return Part("tree", None, (trunk, Part("crown", blob(rng, 0, -0.4, 0.62), fruits)))


def robot(rng: Generator) -> Part:
    wide, spread = rng.uniform(0.28, 0.42), rng.uniform(0.1, 0.5)
    limbs = tuple(
        Part(name, capsule(s * x0, y0, s * x1, y1, 0.09))
        for s in (-1, 1)
        for name, x0, y0, x1, y1 in (("arm", wide, -0.2, wide + 0.35, spread - 0.2), ("leg", 0.18, 0.5, 0.24, 0.9))
    )
    eyes = tuple(Part("eye", ellipse(s * 0.13, -0.7, 0.085)) for s in (-1, 1))
    mouth = Part("mouth", box(-0.15, -0.53, 0.15, -0.45))
    shape = ellipse(0, -0.66, 0.34) if rng.random() < 0.5 else box(-0.32, -0.98, 0.32, -0.38)
    buttons = tuple(Part("button", ellipse(x, 0.12, 0.07)) for x in (-0.1, 0.1))
    panel = Part("panel", box(-0.22, -0.1, 0.22, 0.28), buttons)
    torso = Part("torso", box(-wide, -0.36, wide, 0.55), (panel,))
    return Part("robot", None, (*limbs, torso, Part("head", shape, (*eyes, mouth))))


def flower(rng: Generator) -> Part:
    count, radius = int(rng.integers(5, 9)), rng.uniform(0.17, 0.24)
    angle = np.arange(count) * 2 * np.pi / count + rng.uniform(0, 1)
    petals = tuple(Part("petal", ellipse(0.36 * np.cos(a), -0.42 + 0.36 * np.sin(a), radius)) for a in angle)
    blossom = Part("blossom", None, (*petals, Part("centre", ellipse(0, -0.42, 0.24))))
    leaves = tuple(Part("leaf", capsule(0, 0.75, s * 0.4, 0.45 + rng.uniform(-0.1, 0.1), 0.12)) for s in (-1, 1))
    return Part("flower", None, (Part("stem", capsule(0, -0.3, 0, 0.95, 0.06)), *leaves, blossom))


def sign(rng: Generator) -> Part:
    corners = int(rng.choice([3, 4, 6, 8]))
    flat = np.cos(np.pi / corners)
    phase = -np.pi / 2 + (np.pi / corners if corners != 3 else 0)

    def plate(size: float) -> Outline:
        return star(0, -0.4, size, size * flat, corners, phase)

    symbol = star(0, -0.38, 0.26, 0.11, 5) if rng.random() < 0.5 else box(-0.24, -0.44, 0.24, -0.3)
    face = Part("face", plate(0.46), (Part("symbol", symbol),))
    pole = Part("pole", box(-0.07, -0.1, 0.07, 1))
    return Part("sign", None, (pole, Part("board", plate(0.62), (face,))))


def mug(rng: Generator) -> Part:
    foot = rng.uniform(0.4, 0.6)
    handle = Part("handle", ring(0.55, 0.1, 0.42, 0.25, -np.pi / 2, np.pi / 2))
    motif = Part("motif", star(0, 0.25, 0.26, 0.26 * rng.uniform(0.4, 0.9), int(rng.integers(4, 7))))
    body = Part("body", polygon((-0.62, -0.55), (0.62, -0.55), (foot, 0.85), (-foot, 0.85)), (motif,))
    rim = Part("rim", ellipse(0, -0.55, 0.62, 0.2), (Part("drink", ellipse(0, -0.53, 0.5, 0.13)),))
    return Part("mug", None, (handle, body, rim))


def boat(rng: Generator) -> Part:
    holes = tuple(Part("porthole", ellipse(x, 0.62, 0.1)) for x in (-0.4, 0, 0.4))
    hull = Part("hull", polygon((-1, 0.4), (1, 0.4), (0.65, 0.9), (-0.65, 0.9)), holes)
    mast = Part("mast", box(-0.05, -1, 0.05, 0.42))
    tip = rng.uniform(0.5, 0.8)
    emblem = Part("emblem", ellipse(0.26, 0.0, 0.14))
    sails = (
        Part("main sail", polygon((0.07, -0.85), (0.07, 0.3), (tip, 0.3)), (emblem,)),
        Part("fore sail", polygon((-0.07, -0.6), (-0.07, 0.3), (-tip, 0.3))),
    )
    flag = Part("flag", polygon((0.05, -1), (-0.35, -0.88), (0.05, -0.76)))
    return Part("boat", None, (mast, *sails, flag, hull))


def fish(rng: Generator) -> Part:
    tall = rng.uniform(0.38, 0.55)
    bands = tuple(Part("band", ellipse(x, 0, 0.09, tall * 0.75)) for x in (-0.3, 0.0))
    eye = Part("eye", ellipse(0.45, -0.1, 0.13), (Part("pupil", ellipse(0.47, -0.1, 0.06)),))
    body = Part("body", ellipse(0.1, 0, 0.75, tall), (*bands, eye))
    tail = Part("tail", polygon((-0.5, 0), (-1, -0.5), (-0.85, 0), (-1, 0.5)))
    fin = Part("fin", polygon((-0.2, -tall * 0.8), (0.1, -tall - 0.35), (0.45, -tall * 0.7)))
    return Part("fish", None, (tail, fin, body))


def rocket(rng: Generator) -> Part:
    wide = rng.uniform(0.26, 0.36)
    glass = Part("window", ellipse(0, -0.2, 0.19), (Part("pane", ellipse(0, -0.2, 0.11)),))
    body = Part("body", box(-wide, -0.5, wide, 0.6), (glass, Part("stripe", box(-wide, 0.25, wide, 0.42))))
    nose = Part("nose", polygon((-wide, -0.5), (-wide * 0.6, -0.82), (0, -1), (wide * 0.6, -0.82), (wide, -0.5)))
    fins = tuple(Part("fin", polygon((s * wide, 0.1), (s * (wide + 0.35), 0.7), (s * wide, 0.6))) for s in (-1, 1))
    flame = Part("flame", star(0, 0.6, 0.38, 0.2, 7), (Part("core", ellipse(0, 0.68, 0.14, 0.2)),))
    return Part("rocket", None, (flame, *fins, body, nose))


def clock(rng: Generator) -> Part:
    turn = rng.uniform(0, 2 * np.pi, 2)
    hands = tuple(
        Part("hand", capsule(0, 0, r * np.cos(a), r * np.sin(a), 0.07)) for r, a in zip((0.3, 0.45), turn, strict=True)
    )
    marks = tuple(Part("mark", ellipse(0.52 * np.cos(a), 0.52 * np.sin(a), 0.07)) for a in np.arange(4) * np.pi / 2)
    face = Part("face", ellipse(0, 0, 0.64), (*marks, *hands))
    feet = tuple(Part("foot", capsule(s * 0.4, 0.6, s * 0.6, 0.92, 0.1)) for s in (-1, 1))
    bells = tuple(Part("bell", ellipse(s * 0.5, -0.72, 0.26)) for s in (-1, 1))
    return Part("clock", None, (*feet, *bells, Part("case", ellipse(0, 0, 0.82), (face,))))


def mushroom(rng: Generator) -> Part:
    angle = np.linspace(np.pi, 2 * np.pi, 16)
    cap = around(0, 0.1, 1, rng.uniform(0.8, 1.1), angle)
    dots = tuple(
        Part("dot", ellipse(x, y, rng.uniform(0.1, 0.17)))
        for x, y in ((-0.5, -0.2), (0, -0.55), (0.5, -0.25), (0, -0.1))
    )
    stem = Part("stem", polygon((-0.22, 0), (0.22, 0), (0.32, 0.95), (-0.32, 0.95)))
    return Part("mushroom", None, (stem, Part("cap", cap, dots)))


def snowman(rng: Generator) -> Part:
    eyes = tuple(Part("eye", ellipse(s * 0.1, -0.52, 0.06)) for s in (-1, 1))
    nose = Part("nose", polygon((0, -0.46), (0.3, -0.38), (0, -0.32)))
    buttons = tuple(Part("button", ellipse(0, y, 0.07)) for y in (-0.05, 0.2))
    belly = Part("belly", ellipse(0, 0.08, 0.4), buttons)
    band = Part("band", box(-0.22, -0.8, 0.22, -0.7))
    hat = Part("hat", polygon((-0.36, -0.7), (-0.22, -0.7), (-0.2, -1), (0.2, -1), (0.22, -0.7), (0.36, -0.7)), (band,))
    base = Part("base", ellipse(0, 0.55, rng.uniform(0.45, 0.55)))
    return Part("snowman", None, (base, belly, Part("head", ellipse(0, -0.47, 0.3), (*eyes, nose)), hat))


def bird(rng: Generator) -> Part:
    wing = Part("wing", polygon((-0.45, -0.05), (0.25, -0.1), (0.1, 0.3), (-0.6, rng.uniform(0.2, 0.5))))
    legs = tuple(Part("leg", capsule(x, 0.4, x + 0.05, 0.9, 0.05)) for x in (-0.1, 0.15))
    eye = Part("eye", ellipse(0.6, -0.42, 0.1), (Part("pupil", ellipse(0.62, -0.42, 0.05)),))
    beak = Part("beak", polygon((0.78, -0.48), (1.05, -0.34), (0.78, -0.22)))
    tail = Part("tail", polygon((-0.4, 0.1), (-1, -0.35), (-0.95, 0.1)))
    body = Part("body", ellipse(0, 0.1, 0.65, 0.42), (wing,))
    return Part("bird", None, (*legs, tail, beak, body, Part("head", ellipse(0.55, -0.36, 0.32), (eye,))))


def abstract(rng: Generator) -> Part:
    """A blob, ellipse, polygon or star with up to two more levels of such shapes inside."""

    def shape(x: float, y: float, r: float) -> Outline:
        kind = rng.integers(4)
        if kind == 0:
            return blob(rng, x, y, r)
        if kind == 1:
            return ellipse(x, y, r, r * rng.uniform(0.6, 1))
        corners = int(rng.integers(3, 7))
        inner = np.cos(np.pi / corners) if kind == 2 else rng.uniform(0.5, 0.75)
        return star(x, y, r, r * inner, corners, rng.uniform(0, 6.3))

    def nested(name: str, x: float, y: float, r: float, depth: int) -> Part:
        count = int(rng.integers(1, 4)) if depth else 0
        reach, inner = (0.0, 0.55) if count == 1 else (0.42, 0.28)
        angles = rng.uniform(0, 6.3) + np.arange(count) * 2 * np.pi / max(count, 1)
        inside = [
            nested(f"{name}.{k}", x + reach * r * np.cos(a), y + reach * r * np.sin(a), inner * r, depth - 1)
            for k, a in enumerate(angles)
        ]
        return Part(name, shape(x, y, r), tuple(inside))

    return nested("shape", 0, 0, 0.9, int(rng.integers(1, 4)))


FAMILIES: tuple[Callable[[Generator], Part], ...] = (
    abstract, bird, boat, car, clock, fish, flower, house, mug, mushroom, robot, rocket, sign, snowman, train, tree
)  # fmt: skip

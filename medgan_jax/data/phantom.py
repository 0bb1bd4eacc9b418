"""Procedural dermoscopy: the embedded default data set.

A phantom is a synthetic photograph of a pigmented skin lesion: (image_size, image_size, 3), RGB, uint8, 0 to
255. It needs no file and shows no patient.

Colour is optics. Light comes back from skin attenuated by what it crossed (Beer-Lambert), so a picture is a
sum of densities (melanin, blood, deep melanin, shade) and one exponential: thin melanin looks tan, thick
melanin black, deep melanin blue-grey. Every density is a function of continuous coordinates, x to the right
and y down in [-1, 1], so a lesion is the same at every size.

The classes differ as the ABCD rule says: malignant lesions have more Asymmetry, a more irregular and abrupt
Border, more Colours and a larger Diameter. The ranges overlap, as they do in the clinic.

    Nachbar et al. (1994), "The ABCD rule of dermatoscopy", J Am Acad Dermatol 30:551-559.

All randomness comes from a generator seeded by (seed, index): an image depends on neither its neighbours nor
their number. On one machine it is the same to the bit; other hardware may move a pixel by one grey level.
"""

from functools import lru_cache
from types import SimpleNamespace

import numpy as np

LABELS = ("benign", "malignant")
VERSION = 1  # raise when the pixels of any (seed, index) change: caches are keyed by it
MIN_SIZE, MAX_SIZE = 16, 512

# Chromophores: what one unit of density takes from red, green and blue.
_MELANIN, _BLOOD, _DEEP, _SHADE = range(4)
_ABSORBANCE = np.array(
    [
        (0.48, 0.82, 1.25),  # melanin: tan, brown, black
        (0.10, 0.60, 0.50),  # haemoglobin: pink, red
        (0.85, 0.70, 0.48),  # melanin in the dermis: blue-grey, for tissue above it scatters blue (Tyndall)
        (1.00, 1.00, 1.00),  # shade: darkness without colour; negative for glare
    ],
    np.float32,
)
_WHITE = np.array((250.0, 243.0, 234.0), np.float32)  # what bare, bloodless tissue returns
_FLARE = 0.04  # share of the light that strays within the lens: black is never quite black

_MALIGNANT = 0.2  # share of the images, as in ISIC 2016

# Share of images with hairs, with gel bubbles, in a round field of view.
_HAIRY, _BUBBLY, _CIRCULAR = 0.12, 0.08, 0.12

# What tells one lesion from another: each trait is uniform between the bounds of its class, in the order of
# LABELS. Below 0 a trait is absent, so a negative bound makes it occasional.
_TRAITS = {
    "radius": ((0.30, 0.56), (0.40, 0.70)),  # D: in half-widths of the image
    "asymmetry": ((0.02, 0.15), (0.07, 0.27)),  # A: of the outline, and of the pigment within
    "notching": ((0.02, 0.09), (0.04, 0.16)),  # B: bays and lobes of the outline
    "softness": ((0.07, 0.16), (0.03, 0.09)),  # B: width of the border, in radii; small is abrupt
    "pigment": ((0.8, 1.7), (1.0, 2.1)),  # mean density of melanin
    "blotches": ((0.10, 0.28), (0.18, 0.55)),  # C: patches of lighter and darker brown
    "redness": ((-0.3, 0.2), (-0.4, 0.7)),  # C: density of blood
    "veil": ((-1.5, 0.25), (-0.8, 1.2)),  # C: blue-grey, density of deep melanin
    "regression": ((-1.5, 0.25), (-0.8, 1.0)),  # C: white scar, share of the melanin that has gone
    "network": ((-0.1, 0.35), (-0.2, 0.42)),  # this and the rest: contrast of structures
    "globules": ((-0.8, 0.5), (-0.8, 0.5)),
    "dots": ((-0.8, 0.3), (-0.4, 0.6)),
    "streaks": ((-2.0, 0.10), (-0.8, 0.14)),
}


@lru_cache(maxsize=64)
def _spline(samples: int, cells: int) -> np.ndarray:
    """Cubic B-spline weights, (samples, cells + 3): a lattice of values across the image to samples of it."""
    position = (np.arange(samples) + 0.5) * cells / samples
    distance = np.abs(position[:, None] + 1 - np.arange(cells + 3))
    tails = np.clip(2 - distance, 0, None) ** 3
    weights = np.where(distance < 1, 4 - 3 * distance**2 * (2 - distance), tails) / 6
    return (weights / np.sqrt(151 / 315)).astype(np.float32)  # 151/315 is their mean sum of squares: unit variance


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * x)


class _Canvas:
    """A square of samples, its coordinates, and the random fields that every structure is made of."""

    def __init__(self, rng: np.random.Generator, samples: int) -> None:
        self.rng = rng
        self.samples = samples
        axis = ((np.arange(samples) + 0.5) * 2 / samples - 1).astype(np.float32)
        self.x, self.y = axis[None, :], axis[:, None]

    def noise(self, cells: int) -> np.ndarray:
        """Smooth noise, mean 0 and variance 1, with about `cells` independent patches across the image."""
        lattice = self.rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
        weights = _spline(self.samples, cells)
        return weights @ lattice @ weights.T

    def radius(self, x0: float, y0: float) -> np.ndarray:
        """Distance from (x0, y0)."""
        return np.hypot(*self.turned(0, x0, y0))

    def turned(self, angle: float, x0: float = 0, y0: float = 0) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates about (x0, y0), turned by `angle` radians."""
        x, y = self.x - np.float32(x0), self.y - np.float32(y0)
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return c * x + s * y, c * y - s * x

    def honeycomb(self, period: float) -> np.ndarray:
        """Bent hexagonal cells, about `period` wide: 1 at their centres, down to -0.5 on the mesh between."""
        u, v = self.turned(self.rng.uniform(0, np.pi), *self.rng.uniform(-1, 1, 2))
        scale = np.float32(2 * np.pi / period)
        u = scale * u + self.noise(5) + 0.7 * self.noise(18)
        v = scale * v + self.noise(5) + 0.7 * self.noise(18)
        half, root = np.float32(0.5) * u, np.float32(np.sqrt(0.75)) * v
        return (np.cos(u) + np.cos(half + root) + np.cos(half - root)) / 3


def _skin(canvas: _Canvas, density: np.ndarray) -> None:
    """Tone, mottling, fine texture and uneven light, over the whole picture."""
    rng = canvas.rng
    dark = rng.random() < 0.15
    tone = rng.uniform(0.4, 0.9) if dark else rng.uniform(0.02, 0.25)
    flush = rng.uniform(0.0, 0.2) if dark else rng.triangular(0.0, 0.05, 0.55)
    texture = canvas.noise(40) + 0.6 * canvas.noise(96)
    density[_MELANIN] += tone * (1 + 0.06 * canvas.noise(5) + 0.05 * texture)
    density[_BLOOD] += flush * (1 + 0.2 * canvas.noise(5) + 0.1 * canvas.noise(20))
    across, _ = canvas.turned(rng.uniform(0, 2 * np.pi))
    corners = rng.uniform(0.02, 0.12) * canvas.radius(0, 0) ** 2
    density[_SHADE] += rng.uniform(0, 0.12) + rng.uniform(0, 0.06) * across + corners + 0.008 * texture


def _lesion(canvas: _Canvas, density: np.ndarray, label: str) -> None:
    """The pigmented lesion: its outline, the pigment within, and the structures a dermatoscope shows."""
    rng, column = canvas.rng, LABELS.index(label)
    t = SimpleNamespace(**{name: max(0.0, rng.uniform(*bounds[column])) for name, bounds in _TRAITS.items()})

    # Depth is 1 at the heart of an ellipse and 0 at its rim, and keeps falling: noise bends the outline only.
    x0, y0 = rng.normal(0, 0.05, 2)
    elongation = rng.uniform(1.0, 1.4) ** 0.5
    u, v = canvas.turned(rng.uniform(0, np.pi), x0, y0)
    rim = np.sqrt((u / elongation) ** 2 + (v * elongation) ** 2) / t.radius
    depth = 1 - rim + t.asymmetry * canvas.noise(3) + t.notching * (canvas.noise(9) + 0.7 * canvas.noise(24))
    if t.streaks:
        spokes = np.cos(float(rng.integers(18, 30)) * np.arctan2(v, u) + 2 * canvas.noise(4))
        depth += t.streaks * (1 + canvas.noise(5)) * spokes * np.exp(-(((rim - 0.95) / 0.25) ** 2))
    inside = _sigmoid(depth / (0.5 * t.softness))
    heart = np.clip(depth, 0, 1)

    # Pigment thickens towards the heart, in patches, and heavier on one side in an asymmetric lesion.
    side, _ = canvas.turned(rng.uniform(0, 2 * np.pi), x0, y0)
    patches = canvas.noise(7) + 0.6 * canvas.noise(18) + 0.5 * canvas.noise(48)
    melanin = 0.65 + 0.45 * heart + 1.5 * t.asymmetry * side / t.radius + t.blotches * patches
    mesh = 0.2 - canvas.honeycomb(rng.uniform(0.07, 0.11))
    melanin += t.network * mesh * (1.3 - heart) * (1 + 0.5 * canvas.noise(6))  # plainest near the border
    melanin += t.globules * _sigmoid(8 * (canvas.honeycomb(rng.uniform(0.12, 0.18)) - 0.35))
    melanin += t.dots * _sigmoid(5 * (canvas.noise(28) - 1.6))
    scar = t.regression * _sigmoid(3 * (canvas.noise(4) - 0.5))
    veil = t.veil * _sigmoid(3 * (canvas.noise(4) + 0.5 * canvas.noise(12) - 0.3))
    melanin = t.pigment * np.clip(melanin, 0.15, None) * np.clip(1 - scar, 0.1, 1)
    melanin *= 1 - 0.6 * np.minimum(veil, 1)  # a veil hides the brown beneath it

    density[_MELANIN] += inside * melanin * (1 + 0.5 * density[_MELANIN].mean())  # darker skin, darker moles
    density[_BLOOD] += inside * t.redness * _sigmoid(2 * canvas.noise(4))
    density[_DEEP] += inside * veil
    density[_SHADE] -= 0.12 * inside * scar


def _artefacts(canvas: _Canvas, density: np.ndarray) -> None:
    """What lies over the skin of some pictures: hairs, gel bubbles, the rim of a round field of view."""
    rng = canvas.rng
    hairy, bubbly, circular = rng.random(3) < (_HAIRY, _BUBBLY, _CIRCULAR)
    shade = density[_SHADE]
    for _ in range(rng.integers(2, 6) if hairy else 0):
        along, off = canvas.turned(rng.uniform(0, np.pi), *rng.uniform(-0.8, 0.8, 2))
        bend, start, length = rng.uniform(-0.25, 0.25), rng.uniform(-1.2, 0), rng.uniform(0.8, 2)
        ends = _sigmoid(40 * (along - start)) * _sigmoid(40 * (start + length - along))
        shade += rng.uniform(0.5, 1.0) * ends * np.exp(-(((off - bend * along**2) / 0.013) ** 2))
    for _ in range(rng.integers(2, 6) if bubbly else 0):
        size = rng.uniform(0.03, 0.1)
        x0, y0 = rng.uniform(-0.9, 0.9, 2)
        ring = np.exp(-(((canvas.radius(x0, y0) - size) / 0.015) ** 2))
        glint = np.exp(-((canvas.radius(x0 - 0.4 * size, y0 - 0.4 * size) / 0.02) ** 2))
        shade -= 0.2 * ring + 0.5 * glint
    if circular:
        rim = canvas.radius(*rng.normal(0, 0.04, 2)) - rng.uniform(1.08, 1.3)
        shade += 4 * _sigmoid(rim / 0.012)


def _begin(index: int, seed: int) -> tuple[np.random.Generator, str]:
    """The generator of one phantom, and its first draw: the label."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))
    return rng, LABELS[int(rng.random() < _MALIGNANT)]


def phantom_label(index: int, *, seed: int) -> str:
    """The label of phantom `index` of data set `seed`, one of `LABELS`."""
    return _begin(index, seed)[1]


def phantom_image(index: int, *, seed: int, image_size: int, label: str | None = None) -> np.ndarray:
    """Renders phantom `index` of data set `seed`, RGB, uint8, (image_size, image_size, 3).

    The size, 16 to 512, changes its sampling, not the lesion. The label is by default what `phantom_label` says.

    Raises:
      ValueError: an argument is out of range, or the label unknown.
    """
    if not MIN_SIZE <= image_size <= MAX_SIZE:
        raise ValueError(f"image_size must lie in [{MIN_SIZE}, {MAX_SIZE}], got {image_size}")
    if label not in (None, *LABELS):
        raise ValueError(f"label must be one of {LABELS}, got {label!r}")
    rng, drawn = _begin(index, seed)

    # 128 samples across resolve the finest structures; below 256 px a pixel must also average several.
    factor = max(2 if image_size < 256 else 1, -(-128 // image_size))
    samples = image_size * factor
    canvas = _Canvas(rng, samples)
    density = np.zeros((len(_ABSORBANCE), samples, samples), np.float32)
    _skin(canvas, density)
    _lesion(canvas, density, label or drawn)
    _artefacts(canvas, density)

    light = np.exp(-np.tensordot(_ABSORBANCE.T, density, axes=1))
    light = light.reshape(3, image_size, factor, image_size, factor).mean((2, 4))
    picture = _WHITE * (_FLARE + (1 - _FLARE) * light.transpose(1, 2, 0))
    return np.rint(np.clip(picture, 0, 255)).astype(np.uint8)

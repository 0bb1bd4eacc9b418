"""How often the intervals of small sets contain what they should: the table of docs/metrics.md.

python -m benchmarks.intervals --reals=/data/isic

The features of the reals become a population without end: each draw lies between an image's features and those of one
of its five nearest neighbours. Many times, sets are drawn from it and the figures of evaluate.py computed, with their
95 % intervals. What an interval should contain is the mean of its figure over all draws. Fakes are drawn from the same
population, or from that of the reals at 32 px. Prints Markdown.
"""

import argparse
from collections.abc import Callable

import numpy as np
from scipy.spatial.distance import cdist

from benchmarks.sensitivity import load_reals
from medgan_jax.errors import reported
from medgan_jax.evaluation.protocol import at_low_resolution
from medgan_jax.metrics.distribution.bootstrap import Estimate
from medgan_jax.metrics.distribution.features import efficientnet_features
from medgan_jax.metrics.distribution.fid import fid
from medgan_jax.metrics.distribution.kid import kid
from medgan_jax.metrics.distribution.prdc import prdc
from medgan_jax.progress import progress_bar

_SIZES = ((113, 28), (560, 140))  # of fakes and held-out reals: a fifth of 141 images, and of 700
_NEIGHBOURS = 5


def population(features: np.ndarray) -> Callable[[np.random.Generator, int], np.ndarray]:
    """A function that draws any number of vectors (number, D) like those of `features` (N, D)."""
    nearest = np.argsort(cdist(features, features), axis=1)[:, 1 : _NEIGHBOURS + 1]

    def draw(random: np.random.Generator, number: int) -> np.ndarray:
        first = random.integers(len(features), size=number)
        second = nearest[first, random.integers(_NEIGHBOURS, size=number)]
        share = random.uniform(size=(number, 1))
        return (1 - share) * features[first] + share * features[second]

    return draw


def figures(fakes: np.ndarray, reals: np.ndarray, seed: int, replicates: int) -> dict[str, Estimate]:
    """Those of evaluate.py that are of features."""
    options = {"seed": seed, "replicates": replicates}
    return {"KID": kid(fakes, reals, **options), "FID": fid(fakes, reals, **options)[0]} | {
        name.capitalize(): value for name, value in prdc(fakes, reals, **options).items()
    }


def main() -> None:
    """Parses the flags, simulates, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reals", required=True, help="a folder of real images")
    parser.add_argument("--draws", type=int, default=100, help="of sets, for each line")
    parser.add_argument("--replicates", type=int, default=100, help="of the bootstrap")
    options = parser.parse_args()
    images = load_reals(options.reals)
    compute = efficientnet_features().of
    populations = {name: population(compute(x)) for name, x in (("", images), ("blurred", at_low_resolution(images)))}
    print(
        "| fakes, reals | figure | mean | 95 % interval holds it | width, of what it should be |\n|---|---|---|---|---|"
    )
    for number, held_out in _SIZES:
        for name, draw in populations.items():
            found: dict[str, list[Estimate]] = {}
            with progress_bar(options.draws, desc=f"{number} {name}", unit="draw") as bar:
                for seed in range(options.draws):
                    random = np.random.default_rng(seed)
                    sets = draw(random, number), populations[""](random, held_out)
                    for figure, estimate in figures(*sets, seed, options.replicates).items():
                        found.setdefault(figure, []).append(estimate)
                    bar.update()
            for figure, estimates in found.items():
                values = np.array([estimate.value for estimate in estimates])
                mean, deviation = values.mean(), values.std(ddof=1)
                held = np.mean([estimate.low <= mean <= estimate.high for estimate in estimates])
                width = np.mean([estimate.high - estimate.low for estimate in estimates])
                ratio = f"{width / (2 * 1.96 * deviation):.2f}" if deviation > 1e-9 else "-"
                kind = f"{number} {name or 'alike'}, {held_out}"
                print(f"| {kind} | {figure} | {mean:.3g} | {held:.0%} | {ratio} |", flush=True)


if __name__ == "__main__":
    with reported():
        main()

"""How often `medgan prove` gives the right verdict where the truth is known.

python -m benchmarks.verdicts --repetitions=20

Benign phantoms, and the same kind with a faint grating, which is class 1: a quarter of the images. Each of 20 folds
has 40 images to train the linear classifier on, and 40 held out; there are 8 fakes a real. "Fakes" are not a
generator's but drawn so that the truth is known:

  help          new images of the right class, as a perfect generator would make them
  harm          new images of the wrong class
  no difference copies of the training images
"""

import argparse
from collections import Counter

import numpy as np

from medgan_jax.data.phantom import phantom_image
from medgan_jax.progress import progress_bar
from medgan_jax.proving.arms import all_arms, plan
from medgan_jax.proving.classifier import CLASSIFIERS
from medgan_jax.proving.figures import Fold, Verdict, judge

TRUTHS = {"help": "gain", "harm": "harm", "no difference": "no difference shown"}
_IMAGES, _FOLDS, _OF_FOLD, _RATIOS = 1140, 20, 40, (8.0,)
_CONTRAST, _PERIOD = 4.0, 5.0  # grey levels and px, of the grating


def features() -> list[np.ndarray]:
    """Of each class, those of all images, (1140, 5, 1280)."""
    random = np.random.default_rng(0)
    with progress_bar(_IMAGES, desc="phantoms", unit="image") as bar:
        images = []
        for number in range(_IMAGES):
            images.append(phantom_image(number, seed=5, image_size=32))
            bar.update()
    plain = np.stack(images).astype(float)
    angle, phase = random.uniform(0, np.pi, _IMAGES), random.uniform(0, 2 * np.pi, _IMAGES)
    rows, columns = np.mgrid[:32, :32]
    along = columns * np.cos(angle)[:, None, None] + rows * np.sin(angle)[:, None, None]
    grating = _CONTRAST * np.sin(2 * np.pi / _PERIOD * along + phase[:, None, None])
    both = [x.round().clip(0, 255).astype(np.uint8) for x in (plain, plain + grating[..., None])]
    return [CLASSIFIERS["linear"].inputs(x, augmented=True) for x in both]


def trial(of_class: list[np.ndarray], truth: str, repetition: int) -> Verdict:
    """One trial whose truth is one of `TRUTHS`."""
    random = np.random.default_rng(repetition)
    classifier, arms = CLASSIFIERS["linear"], all_arms(_RATIOS)
    order = random.permutation(_IMAGES)
    used, rest = order[: _FOLDS * _OF_FOLD].reshape(_FOLDS, _OF_FOLD), order[_FOLDS * _OF_FOLD :]
    labels = (np.arange(_OF_FOLD) % 4 == 0).astype(int)

    def seen(indices: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return np.where((labels == 1)[:, None, None], of_class[1][indices], of_class[0][indices])

    folds = []
    for number in range(_FOLDS):
        reals = seen(used[(number + 1) % _FOLDS], labels)
        fakes, of_fakes = [], []
        unseen = random.permutation(rest)
        for label in (0, 1):
            own = reals[labels == label]
            count = int(max(_RATIOS)) * len(own)
            indices, unseen = unseen[:count], unseen[count:]
            shown = np.full(count, label if truth == "help" else 1 - label)
            fakes.append(np.resize(own, (count, *own.shape[1:])) if truth == "no difference" else seen(indices, shown))
            of_fakes.append(np.full(count, label))
        inputs = np.concatenate([reals, *fakes])
        of_inputs = np.concatenate([labels, *of_fakes])
        synthetic = np.arange(len(inputs)) >= _OF_FOLD
        held_out = seen(used[number], labels)
        scores = {}
        for arm in arms:
            drawn = plan(arm, of_inputs, synthetic, 2)
            trained = [classifier.train(inputs, of_inputs, drawn, steps=100, seed=seed) for seed in range(2)]
            scores[arm.name] = np.stack([classifier.predict(variables, held_out) for variables in trained])
        folds.append(Fold(labels, np.arange(_OF_FOLD), scores))
    return judge(folds, arms, positive=1)


def main() -> None:
    """Prints how often each verdict was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20)
    repetitions = parser.parse_args().repetitions
    of_class = features()
    for truth, right in TRUTHS.items():
        words: Counter[str] = Counter()
        with progress_bar(repetitions, desc=truth, unit="trial") as bar:
            for repetition in range(repetitions):
                words[trial(of_class, truth, repetition).word] += 1
                bar.update()
        print(f"{truth}: {words[right]} of {repetitions} right; {dict(words)}", flush=True)


if __name__ == "__main__":
    main()

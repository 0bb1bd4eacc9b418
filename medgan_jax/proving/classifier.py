"""Two classifiers of images: EfficientNet-Lite0 from ImageNet, as fixed features under a linear layer or fine-tuned.

Both are trained by the same loop: AdamW, linear warm-up, cosine decay, cross-entropy weighted by class. How a training
draws its images is a `Plan`, so that arms of a trial differ in nothing else.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from medgan_jax.config import AugmentConfig
from medgan_jax.images import uint8_to_signed
from medgan_jax.models.efficientnet_lite import MIN_SIZE, EfficientNetLite, load_efficientnet_lite
from medgan_jax.rng import RngStream, rng_key
from medgan_jax.sharding import data_mesh, replicated, sharded
from medgan_jax.training.augment import augment

AUGMENTATION = AugmentConfig(flips=True, quarter_turns=True, color=0.5, translation=0.125)
_VARIANTS = 4  # augmented copies of each image, for the classifier whose features are computed once
_FEATURES = 1280  # of EfficientNet-Lite0
_BATCH = 32
_WARMUP = 0.1  # share of the steps
_STEPS_AT_ONCE = 25
_INFERENCE_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a training draws from a pool of N images of K classes.

    Attributes:
      shares: float64, (N,), of sum 1: how likely each image is at each draw.
      class_weights: float32, (K,): of the losses of each class's images.
      augmented: whether the images drawn are augmented, see `AUGMENTATION`.
    """

    shares: np.ndarray
    class_weights: np.ndarray
    augmented: bool


class Classifier(abc.ABC):
    """What is trained, and what it is trained on.

    Attributes:
      description: for people.
      steps: of a training, by default.
    """

    description: str
    steps: int
    _rate: float
    _weight_decay: float

    @abc.abstractmethod
    def inputs(self, images: np.ndarray, *, augmented: bool) -> np.ndarray:
        """What `train` takes of images uint8, (N, H, W, C); `augmented` says whether a plan may ask for that."""

    @abc.abstractmethod
    def _initial(self, inputs: np.ndarray, num_classes: int) -> dict[str, Any]:
        """Variables, of which "params" are trained."""

    @abc.abstractmethod
    def _drawn(self, inputs: np.ndarray, indices: np.ndarray, augmented: bool, random: np.random.Generator) -> Any:
        """The inputs of a few steps, from those of the pool by `indices`, (steps, batch)."""

    @abc.abstractmethod
    def _logits(self, variables: Any, batch: Any, key: jax.Array, augmented: bool) -> tuple[jax.Array, Any]:
        """Logits (B, K) of a batch as `_drawn`, in training, and the variables that are no parameters, updated."""

    @abc.abstractmethod
    def _predicted(self, variables: Any, batch: Any) -> jax.Array:
        """Logits (B, K) of a batch of `inputs`."""

    @abc.abstractmethod
    def attention(self, variables: dict[str, Any], images: np.ndarray, label: int) -> np.ndarray:
        """Class activation maps (Zhou et al. 2016, arXiv:1512.04150) of images uint8, (N, H, W, C).

        Returns:
          Float32, (N, h, w): how much each place speaks for class `label`, more where larger.
        """

    def train(self, inputs: np.ndarray, labels: np.ndarray, plan: Plan, *, steps: int, seed: int) -> dict[str, Any]:
        """Trains from ImageNet's weights; the same call gives the same variables.

        Args:
          inputs: of N images, see `inputs`.
          labels: int, (N,), their classes.
          plan: how they are drawn.
          steps: of 32 images.
          seed: of what is drawn.
        """
        mesh = data_mesh()
        batch = -(-_BATCH // mesh.size) * mesh.size
        random = np.random.default_rng(seed)
        indices = random.choice(len(labels), (steps, batch), p=plan.shares)
        num_classes = len(plan.class_weights)
        variables = jax.device_put(self._initial(inputs, num_classes), replicated(mesh))
        optimizer = self._optimizer(steps)
        state = (variables, optimizer.init(variables["params"]))
        run = _steps(self, steps, plan.augmented)
        weights = jnp.asarray(plan.class_weights, jnp.float32)
        for start in range(0, steps, _STEPS_AT_ONCE):
            chunk = indices[start : start + _STEPS_AT_ONCE]
            drawn = jax.device_put(
                (self._drawn(inputs, chunk, plan.augmented, random), labels[chunk].astype(np.int32)),
                sharded(mesh, axis=1),
            )
            with jax.set_mesh(mesh):
                state = run(state, *drawn, weights, rng_key(seed, RngStream.CLASSIFIER), start)
        return state[0]

    def predict(self, variables: dict[str, Any], inputs: np.ndarray) -> np.ndarray:
        """Probabilities, float64 (N, K), of `inputs`."""
        parts = []
        for start in range(0, len(inputs), _INFERENCE_BATCH):
            places = np.minimum(np.arange(start, start + _INFERENCE_BATCH), len(inputs) - 1)  # one shape
            parts.append(np.asarray(_predict(self, variables, inputs[places]), np.float64))
        logits = np.concatenate(parts)[: len(inputs)]
        shifted = np.exp(logits - logits.max(1, keepdims=True))
        return shifted / shifted.sum(1, keepdims=True)

    def _optimizer(self, steps: int) -> optax.GradientTransformation:
        warmup = max(int(_WARMUP * steps), 1)
        rate = optax.warmup_cosine_decay_schedule(0.0, self._rate, warmup, max(steps, warmup + 1))
        return optax.adamw(rate, weight_decay=self._weight_decay)


@functools.lru_cache
def _steps(classifier: Classifier, steps: int, augmented: bool) -> Callable[..., Any]:
    optimizer = classifier._optimizer(steps)

    def loss(params: Any, variables: Any, batch: Any, labels: jax.Array, weights: jax.Array, key: jax.Array) -> Any:
        logits, others = classifier._logits(variables | {"params": params}, batch, key, augmented)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return (losses * weights[labels]).mean(), others

    @jax.jit
    def run(state: Any, batches: Any, labels: jax.Array, weights: jax.Array, key: jax.Array, start: int) -> Any:
        def step(state: Any, drawn: Any) -> tuple[Any, None]:
            (variables, opt_state), (number, batch, of_batch) = state, drawn
            gradient, others = jax.grad(loss, has_aux=True)(
                variables["params"], variables, batch, of_batch, weights, jax.random.fold_in(key, number)
            )
            updates, opt_state = optimizer.update(gradient, opt_state, variables["params"])
            params = optax.apply_updates(variables["params"], updates)
            return (variables | others | {"params": params}, opt_state), None

        return jax.lax.scan(step, state, (start + jnp.arange(len(labels)), batches, labels))[0]

    return run


@functools.partial(jax.jit, static_argnums=0)
def _predict(classifier: Classifier, variables: Any, batch: Any) -> jax.Array:
    return classifier._predicted(variables, batch)


@dataclasses.dataclass(frozen=True)
class LinearClassifier(Classifier):
    """A linear layer on frozen features, which are standardised by those of the pool."""

    description: str = "logistic regression on the features of EfficientNet-Lite0 from ImageNet"
    steps: int = 300
    _rate: float = 3e-4
    _weight_decay: float = 0.1

    def inputs(self, images: np.ndarray, *, augmented: bool) -> np.ndarray:
        """Float32, (N, V, 1280): of each image and, where `augmented`, of augmented copies."""
        variants = _VARIANTS + 1 if augmented else 1
        features = np.empty((len(images), variants, _FEATURES), np.float32)
        for variant in range(variants):
            for start in range(0, len(images), _INFERENCE_BATCH):
                places = np.minimum(np.arange(start, start + _INFERENCE_BATCH), len(images) - 1)
                key = jax.random.fold_in(rng_key(variant, RngStream.CLASSIFIER), start)
                found = np.asarray(_pooled(_frozen(), np.asarray(images[places]), key, variant > 0))
                features[start : start + _INFERENCE_BATCH, variant] = found[: len(images) - start]
        return features

    def _initial(self, inputs: np.ndarray, num_classes: int) -> dict[str, Any]:
        plain = inputs[:, 0]
        params = {"kernel": np.zeros((_FEATURES, num_classes), np.float32), "bias": np.zeros(num_classes, np.float32)}
        return {"params": params, "mean": plain.mean(0), "deviation": plain.std(0) + np.float32(1e-3)}

    def _drawn(self, inputs: np.ndarray, indices: np.ndarray, augmented: bool, random: np.random.Generator) -> Any:
        variants = random.integers(1, inputs.shape[1], indices.shape) if augmented else np.zeros_like(indices)
        return inputs[indices, variants]

    def _logits(self, variables: Any, batch: Any, key: jax.Array, augmented: bool) -> tuple[jax.Array, Any]:
        del key, augmented  # the batch was drawn from what is augmented
        params = variables["params"]
        standardised = (batch - variables["mean"][None]) / variables["deviation"][None]
        return standardised @ params["kernel"] + params["bias"][None], {}

    def _predicted(self, variables: Any, batch: Any) -> jax.Array:
        return self._logits(variables, batch[:, 0], jax.random.key(0), False)[0]

    def attention(self, variables: dict[str, Any], images: np.ndarray, label: int) -> np.ndarray:
        """See `Classifier`."""
        weights = (variables["params"]["kernel"] / variables["deviation"][:, None])[:, label]
        return np.asarray(_network(_frozen(), uint8_to_signed(jnp.asarray(images)), folded=True).head @ weights)


@dataclasses.dataclass(frozen=True)
class FineTunedClassifier(Classifier):
    """All of EfficientNet-Lite0 and a new last layer, trained at the images' size."""

    description: str = "EfficientNet-Lite0 from ImageNet, fine-tuned"
    steps: int = 300
    _rate: float = 3e-4
    _weight_decay: float = 1e-2

    def inputs(self, images: np.ndarray, *, augmented: bool) -> np.ndarray:
        """The images themselves."""
        del augmented  # anew at each step
        return np.asarray(images)

    def _initial(self, inputs: np.ndarray, num_classes: int) -> dict[str, Any]:
        variables = load_efficientnet_lite("lite0", folded=False)
        last = {"kernel": np.zeros((_FEATURES, num_classes), np.float32), "bias": np.zeros(num_classes, np.float32)}
        return {"params": {"network": variables["params"], "last": last}, "batch_stats": variables["batch_stats"]}

    def _drawn(self, inputs: np.ndarray, indices: np.ndarray, augmented: bool, random: np.random.Generator) -> Any:
        return inputs[indices]

    def _logits(self, variables: Any, batch: Any, key: jax.Array, augmented: bool) -> tuple[jax.Array, Any]:
        images = uint8_to_signed(batch)
        if augmented:
            images = augment(images, key, AUGMENTATION, 1.0)
        params = variables["params"]
        network = {"params": params["network"], "batch_stats": variables["batch_stats"]}
        module = EfficientNetLite("lite0", folded=False)
        activations, updated = module.apply(network, _enlarged(images), training=True, mutable=["batch_stats"])
        return activations.pooled @ params["last"]["kernel"] + params["last"]["bias"][None], updated

    def _predicted(self, variables: Any, batch: Any) -> jax.Array:
        params = variables["params"]
        network = {"params": params["network"], "batch_stats": variables["batch_stats"]}
        pooled = _network(network, uint8_to_signed(batch), folded=False).pooled
        return pooled @ params["last"]["kernel"] + params["last"]["bias"][None]

    def attention(self, variables: dict[str, Any], images: np.ndarray, label: int) -> np.ndarray:
        """See `Classifier`."""
        network = {"params": variables["params"]["network"], "batch_stats": variables["batch_stats"]}
        head = _network(network, uint8_to_signed(jnp.asarray(images)), folded=False).head
        return np.asarray(head @ variables["params"]["last"]["kernel"][:, label])


CLASSIFIERS: dict[str, Classifier] = {"linear": LinearClassifier(), "finetuned": FineTunedClassifier()}


@functools.cache
def _frozen() -> Any:
    return jax.device_put(load_efficientnet_lite("lite0"))


@functools.partial(jax.jit, static_argnums=3)
def _pooled(variables: Any, images: jax.Array, key: jax.Array, augmented: bool) -> jax.Array:
    signed = uint8_to_signed(images)
    return _network(variables, augment(signed, key, AUGMENTATION, 1.0) if augmented else signed, folded=True).pooled


@functools.partial(jax.jit, static_argnames="folded")
def _network(variables: Any, images: jax.Array, *, folded: bool) -> Any:
    return EfficientNetLite("lite0", folded=folded).apply(variables, _enlarged(images))


def _enlarged(images: jax.Array) -> jax.Array:
    """Images of at least the size that the network takes."""
    number, size, _, channels = images.shape
    if size >= MIN_SIZE:
        return images
    return jax.image.resize(images, (number, MIN_SIZE, MIN_SIZE, channels), "bilinear")

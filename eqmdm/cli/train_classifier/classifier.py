"""A small image classifier, whose last hidden layer gives features."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, Shaped

import eqmdm


N_FEATURES = 64
# The batch size of the evaluation, which is compiled for one size.
_BATCH = 250
_WEIGHTS, _ORDER, _FLIP = range(3)
_STEPS = {"digits": 400, "mnist": 1500, "fashion_mnist": 3000, "cifar10": 5000}
_STEPS |= {"imagenet32": 20_000}
NAMES = tuple(_STEPS)


@final
class Classifier(eqx.Module):
    """Three convolutions, a hidden layer of features, and the logits of the classes."""

    convolutions: tuple[eqx.nn.Conv2d, ...]
    hidden: eqx.nn.Linear
    head: eqx.nn.Linear
    n_levels: int = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        n_levels: int,
        n_classes: int,
        width: int,
        key: jax.Array,
    ):
        height, image_width, n_channels = shape
        *keys, key_hidden, key_head = jr.split(key, 5)
        channels = (n_channels, width, 2 * width, 4 * width)
        self.convolutions = tuple(
            eqx.nn.Conv2d(channels[i], channels[i + 1], 3, stride, padding=1, key=k)
            for i, (stride, k) in enumerate(zip((1, 2, 2), keys, strict=True))
        )
        # Each of the two strides rounds its output size up.
        n_pixels = -(-height // 4) * -(-image_width // 4)
        self.hidden = eqx.nn.Linear(n_pixels * channels[-1], N_FEATURES, key=key_hidden)
        self.head = eqx.nn.Linear(N_FEATURES, n_classes, key=key_head)
        self.n_levels = n_levels

    def features(
        self, image: Shaped[Array, "height width channels"]
    ) -> Float[Array, " features"]:
        """The activations of the hidden layer, in which the logits are linear."""
        x = jnp.moveaxis(image.astype(jnp.float32), -1, 0)
        x = 2 * x / (self.n_levels - 1) - 1
        for convolution in self.convolutions:
            x = jax.nn.relu(convolution(x))
        return jax.nn.relu(self.hidden(x.ravel()))

    def __call__(
        self, image: Shaped[Array, "height width channels"]
    ) -> Float[Array, " classes"]:
        """The logits."""
        return self.head(self.features(image))


def default_file(dataset: str) -> Path:
    return Path("runs") / f"features-{dataset}.npz"


def train(
    dataset: Any,
    *,
    seed: int = 0,
    steps: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    width: int = 16,
    progress: Any = lambda steps: steps,
) -> tuple[Classifier, dict[str, Any]]:
    """A classifier trained on the training split, and the facts to save with it.

    `progress` wraps the iterable of steps. The same arguments give bitwise equal
    weights on the same machine.
    """
    steps = _STEPS[dataset.name] if steps is None else steps
    check(dataset, steps, batch_size, width, learning_rate)
    n_classes = int(max(split.max() for split in dataset.labels)) + 1
    sizes = {"n_levels": dataset.n_levels, "n_classes": n_classes, "width": width}
    key = lambda purpose: jr.fold_in(jr.key(seed), purpose)
    model = Classifier(dataset.shape, **sizes, key=key(_WEIGHTS))
    optimiser = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    state = optimiser.init(eqx.filter(model, eqx.is_inexact_array))
    images, labels = jnp.asarray(dataset.train), jnp.asarray(dataset.labels.train)

    @eqx.filter_jit
    def step(model, state, number):
        rows = eqmdm.data.shuffled_indices(
            key(_ORDER), number * batch_size, batch_size, len(images)
        )
        batch = images[rows]
        if dataset.flip:
            keys = jr.split(jr.fold_in(key(_FLIP), number), batch_size)
            batch = jax.vmap(lambda x, k: eqmdm.data.random_flip(x, key=k))(batch, keys)

        def loss(model):
            logits = jax.vmap(model)(batch)
            losses = optax.softmax_cross_entropy_with_integer_labels
            return jnp.mean(losses(logits, labels[rows]))

        updates, state = optimiser.update(eqx.filter_grad(loss)(model), state)
        return eqx.apply_updates(model, updates), state

    for number in progress(range(steps)):
        model, state = step(model, state, jnp.asarray(number, jnp.int32))
    facts = {"dataset": dataset.name, "data_fingerprint": dataset.fingerprint}
    facts |= {"shape": list(dataset.shape), **sizes, "seed": seed, "steps": steps}
    facts |= {"batch_size": batch_size, "learning_rate": learning_rate}
    return model, facts | held_out_accuracy(model, dataset) | _versions()


def check(
    dataset: Any, steps: int, batch_size: int, width: int, learning_rate: float
) -> None:
    if dataset.labels is None:
        raise ValueError(
            f"{dataset.name} must have labels to train a classifier; its files have "
            "no column `label` with a class for every image. Pass your own features "
            "with --features."
        )
    for name, value in (("steps", steps), ("batch_size", batch_size), ("width", width)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}.")
    if not learning_rate > 0:
        raise ValueError(f"`learning_rate` must be positive; got {learning_rate}.")


def held_out_accuracy(model: Classifier, dataset: Any) -> dict[str, Any]:
    """The fraction of test images that are classified correctly, and its standard
    error."""
    batched = eqx.filter_jit(jax.vmap(lambda image: jnp.argmax(model(image))))
    predicted = in_batches(batched, dataset.test)
    accuracy = float(np.mean(predicted == dataset.labels.test))
    n = len(predicted)
    error = float(np.sqrt(accuracy * (1 - accuracy) / n))
    return {"accuracy": accuracy, "standard_error": error, "examples": n}


def in_batches(batched: Any, images: np.ndarray, size: int = _BATCH) -> np.ndarray:
    """The results of a compiled batch function for all images."""
    parts = []
    for start in range(0, len(images), size):
        # The last batch is padded with its last image, to compile only once.
        rows = np.minimum(np.arange(start, start + size), len(images) - 1)
        parts.append(np.asarray(batched(jnp.asarray(images[rows]))))
    return np.concatenate(parts)[: len(images)]


def save(path: Path, model: Classifier, facts: dict[str, Any]) -> None:
    """Write weights and facts to one file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    arrays: dict[str, Any] = {f"weights_{i}": x for i, x in enumerate(_leaves(model))}
    with partial.open("wb") as file:
        np.savez(file, facts=np.asarray(json.dumps(facts)), **arrays)
    os.replace(partial, path)


def load(path: Path) -> tuple[Classifier, dict[str, Any]]:
    """The classifier and the facts that `save` wrote.

    **Raises:** `ValueError` if `save` did not write the file.
    """
    if not path.is_file():
        raise ValueError(f"`features` must be a file; there is no {path}.")
    try:
        # Opened here, since NumPy does not close a damaged file.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
        facts = json.loads(str(arrays.pop("facts")))
        sizes = {name: facts[name] for name in ("n_levels", "n_classes", "width")}
        shape = tuple(facts["shape"])
    except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"`features` must be a file that `eqmdm train-classifier` wrote; {path} is "
            f"not one ({type(error).__name__}: {error})."
        ) from error
    model = eqx.filter_eval_shape(Classifier, shape, **sizes, key=jr.key(0))
    leaves, structure = jax.tree.flatten(model)
    weights = [arrays.get(f"weights_{i}") for i in range(len(leaves))]
    if [getattr(x, "shape", None) for x in weights] != [leaf.shape for leaf in leaves]:
        raise ValueError(
            f"`features` must hold the weights of a classifier of {shape}; those in "
            f"{path} have other shapes. Was it written by another version of eqmdm?"
        )
    return jax.tree.unflatten(structure, [jnp.asarray(x) for x in weights]), facts


def _leaves(model: Classifier) -> list[np.ndarray]:
    return [
        np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array))
    ]


def _versions() -> dict[str, Any]:
    device = jax.devices()[0].device_kind
    return {"eqmdm": eqmdm.__version__, "jax": jax.__version__, "device": device}

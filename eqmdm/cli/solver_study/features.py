"""The features of images for the Fréchet distance."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ..._core.own import find_own, is_own
from ..train_classifier import classifier
from .inception import Inception
from .inception_file import check_not_pickled, is_safetensors, load_inception


# The number of images that a user's function gets at once.
_BATCH = 250
# The number at once in the Inception network, whose largest layer has 8 MB for each.
_INCEPTION_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Features:
    """A function from images to rows of features, with its identity."""

    function: Callable[[np.ndarray], np.ndarray]
    identity: dict[str, Any]
    """Recorded by a study, and compared when it is continued."""


def find_features(given: str | None, dataset: Any) -> Features | None:
    """The features that the user chose, by default those of a classifier, which is
    trained if necessary. `None` for points, and if no labels exist to train with.

    **Raises:**

    `ValueError` for a file or a function that does not exist or is unsuitable.
    """
    if dataset.n_levels is None:
        if given not in (None, "none"):
            raise ValueError(
                f"`features` must be left out for {dataset.name}, whose points are "
                f"compared directly; got {given}."
            )
        return None
    if given == "none":
        return None
    if given is not None and is_own(given) and not Path(given).exists():
        return _of_function(given)
    if given is None:
        if dataset.labels is None:
            print("no Fréchet distance: the image files have no labels")
            return None
        given = str(_trained(dataset))
    path = Path(given)
    if path.is_file():
        if is_safetensors(path):
            return _of_inception(path, dataset)
        check_not_pickled(path)
    return _of_classifier(path, dataset)


def _trained(dataset: Any) -> Path:
    path = classifier.default_file(dataset.name)
    if not path.exists():
        wrap = lambda steps: tqdm(steps, desc="training a classifier", unit="step")
        model, facts = classifier.train(dataset, progress=wrap)
        classifier.save(path, model, facts)
    return path


def _of_classifier(path: Path, dataset: Any) -> Features:
    model, facts = classifier.load(path)
    if facts["data_fingerprint"] != dataset.fingerprint:
        raise ValueError(
            f"`features` must be a classifier of the data of the run, {dataset.name} "
            f"with the fingerprint {dataset.fingerprint[:16]}; that in {path} is of "
            f"{facts['dataset']} with {facts['data_fingerprint'][:16]}. Train one with "
            "train_classifier.py --output FILE and pass --features FILE."
        )
    print(
        f"features: {path}, held-out accuracy {facts['accuracy']:.4f} +- "
        f"{facts['standard_error']:.4f} on {facts['examples']} images"
    )
    batched = eqx.filter_jit(jax.vmap(lambda image: model.features(image)))
    digest = _digest(path)
    accuracy = {"accuracy": facts["accuracy"], "examples": facts["examples"]}
    accuracy |= {"standard_error": facts["standard_error"]}
    return Features(
        lambda images: classifier.in_batches(batched, images),
        {"features": f"classifier {digest}", "features_accuracy": accuracy},
    )


def _of_inception(path: Path, dataset: Any) -> Features:
    n_channels = dataset.shape[-1]
    if n_channels not in (1, 3):
        raise ValueError(
            "`features` must not be an Inception network for images that are neither "
            f"grey nor in colour; those of {dataset.name} have {n_channels} channels. "
            "Pass a classifier, or module:function with features of your own."
        )
    network = load_inception(path)
    # The grey levels as those of an 8-bit image, to which the distance refers.
    levels = np.arange(dataset.n_levels) * (255 / (dataset.n_levels - 1))
    pixels = jnp.asarray(np.rint(levels).astype(np.uint8))

    # The network is an argument, since a program would hold its constants in text.
    @eqx.filter_jit
    def features(network: Inception, images: jax.Array) -> jax.Array:
        rgb = jnp.broadcast_to(pixels[images], (*images.shape[:-1], 3))
        return jax.vmap(network)(rgb)

    batched = functools.partial(features, network)
    digest = _digest(path)
    print(f"features: the Inception network in {path}, {digest}")
    return Features(
        lambda images: classifier.in_batches(batched, images, _INCEPTION_BATCH),
        {"features": f"inception {digest}"},
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _of_function(given: str) -> Features:
    function = find_own(given, argument="features", kind="a file, none, or a function")

    def features(images: np.ndarray) -> np.ndarray:
        starts = range(0, len(images), _BATCH)
        rows = [np.asarray(function(images[i : i + _BATCH])) for i in starts]
        wrong = {part.shape for part in rows if part.ndim != 2}
        if wrong or sum(map(len, rows)) != len(images):
            raise ValueError(
                f"`features` must give a row of features for each image; {given} gave "
                f"{rows[0].shape} for {len(images[:_BATCH])} images."
            )
        return np.concatenate(rows)

    return Features(features, {"features": given})

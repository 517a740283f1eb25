"""Does XLA compile any other form of convolution better for a CPU than its own?

    python benchmarks/convolution.py

Times the 3x3 convolutions of the MNIST U-Net, in GFLOP/s, forward and backward in
images and kernel, and the gradient of the whole network. The same convolution is
written as

- `xla`: a convolution,
- `patches`: one product of all 3x3 patches with the kernel,
- `patches-each`: the same, in a loop over images, whose patches fit the cache,
- `rows`: a product of 1x3 patches for all three rows, and the sum of their shifts,
- `in-parts`: XLA's convolution, with the kernel gradient as a sum over parts of the
    batch that fit the cache; it has reverse-mode derivatives only,
- `channels-first`: XLA's convolution of arrays with channels before height and width. A
    layer is given such arrays; the network, which is channels-last, transposes to them
    and back, unless XLA removes the transposes.

All forms are interleaved in one run. Prints medians, and for the network medians of the
ratios of neighbouring calls. `matmul` is the rate of the product in `patches` alone, an
upper bound for all forms.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, cast
from unittest import mock

import _common as common
import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro

import eqmdm


_LAYOUT = ("NHWC", "HWIO", "NHWC")
# Image side, input channels and output channels of each layer.
_LAYERS = ((28, 32, 32), (28, 64, 32), (14, 64, 64), (14, 128, 64), (7, 64, 64))
_xla_convolution = lax.conv_general_dilated


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Times forms of convolution."""

    batch_size: int = 32
    """Images."""
    repeats: int = 9
    """Timed calls of each form, after one that compiles."""
    seed: int = 0
    """The seed of images and kernels."""
    quick: bool = False
    """Run the smallest layer with four images and two repeats."""


def xla(x, weight) -> Any:
    return _xla_convolution(x, weight, (1, 1), "SAME", dimension_numbers=_LAYOUT)


def patches(x, weight):
    _, height, width, n_in = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifts, axis=-1) @ weight.reshape(9 * n_in, -1)


def patches_each(x, weight):
    return lax.map(lambda image: patches(image[None], weight)[0], x)


def rows(x, weight):
    _, height, width, n_in = x.shape
    n_out = weight.shape[-1]
    x = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    shifts = jnp.concatenate([x[:, :, j : j + width] for j in range(3)], axis=-1)
    matrix = weight.reshape(3, 3 * n_in, n_out).swapaxes(0, 1).reshape(3 * n_in, -1)
    out = (shifts @ matrix).reshape(*shifts.shape[:3], 3, n_out)
    out = jnp.pad(out, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    return sum(out[:, i : i + height, :, i] for i in range(3))


def of_channels_first(x, weight):
    layout = "NCHW", "OIHW", "NCHW"
    return _xla_convolution(x, weight, (1, 1), "SAME", dimension_numbers=layout)


def channels_first(x, weight):
    x, weight = x.transpose(0, 3, 1, 2), weight.transpose(3, 2, 0, 1)
    return of_channels_first(x, weight).transpose(0, 2, 3, 1)


@jax.custom_vjp
def in_parts(x, weight):
    return xla(x, weight)


def _in_parts_backward(residuals, y):
    x, weight = residuals
    [x_bar] = jax.vjp(lambda x: xla(x, weight), x)[1](y)

    # Axes are ordered here, since XLA does not do so inside a loop and is then 40 times
    # slower.
    def of_part(x, y):
        x, y = x.transpose(3, 1, 2, 0), y.transpose(1, 2, 0, 3)
        padding = ((1, 1), (1, 1))
        out = _xla_convolution(x, y, (1, 1), padding, dimension_numbers=_LAYOUT)
        return out.transpose(1, 2, 0, 3)

    # The largest divisor of the batch that fits in half of a 1 MiB level-2 cache.
    most = max(1, 2**19 // (y.nbytes // len(y)))
    n_each = max(n for n in range(1, most + 1) if len(x) % n == 0)
    divide = lambda images: images.reshape(-1, n_each, *images.shape[1:])
    weights = lax.map(lambda part: of_part(*part), (divide(x), divide(y)))
    return x_bar, jnp.sum(weights, axis=0)


in_parts.defvjp(lambda x, weight: (xla(x, weight), (x, weight)), _in_parts_backward)


def given_the_batch(convolution: Callable[..., Any]) -> Callable[..., Any]:
    """The convolution, which receives all images at once even under `jax.vmap`."""

    @jax.custom_batching.custom_vmap
    def of_one(x, weight):
        return convolution(x, weight)

    @of_one.def_vmap
    def of_batch(n, is_batched, x, weight):
        assert is_batched == [True, False]
        images = x.reshape(-1, *x.shape[2:])
        return convolution(images, weight).reshape(n, *x.shape[1:-1], -1), True

    return of_one


_FORMS: dict[str, Callable[..., Any]] = {
    "xla": xla,
    "patches": patches,
    "patches-each": patches_each,
    "rows": rows,
    "in-parts": in_parts,
    "channels-first": channels_first,
}


def rates(side: int, n_in: int, n_out: int, settings: Settings) -> list[dict[str, Any]]:
    """The GFLOP/s of each form: forward, and backward to images and kernel."""
    keys = jr.split(jr.key(settings.seed), 4)
    draw = lambda key, *shape: jr.normal(key, shape, jnp.float32)
    x = draw(keys[0], settings.batch_size, side, side, n_in)
    weight = draw(keys[1], 3, 3, n_in, n_out) / np.sqrt(9 * n_in)
    y = draw(keys[2], settings.batch_size, side, side, n_out)
    columns = draw(keys[3], settings.batch_size * side**2, 9 * n_in)
    calls: dict[tuple[str, str], Any] = {
        ("matmul", "forward"): (
            jax.jit(jnp.matmul),
            (columns, weight.reshape(-1, n_out)),
        )
    }
    for form, convolution in _FORMS.items():
        given = x, weight, y
        if form == "channels-first":
            convolution = of_channels_first
            to_first = lambda images: images.transpose(0, 3, 1, 2)
            given = to_first(x), weight.transpose(3, 2, 0, 1), to_first(y)
        to_images = lambda x, weight, y, f=convolution: jax.vjp(
            lambda x: f(x, weight), x
        )[1](y)
        to_kernel = lambda x, weight, y, f=convolution: jax.vjp(partial(f, x), weight)[
            1
        ](y)
        calls[form, "forward"] = jax.jit(convolution), given[:2]
        calls[form, "images"] = jax.jit(to_images), given
        calls[form, "kernel"] = jax.jit(to_kernel), given

    def result(form, what):
        function, arguments = calls[form, what]
        found = jax.tree.leaves(function(*arguments))[0]
        if form != "channels-first":
            return found
        return found.transpose((2, 3, 1, 0) if what == "kernel" else (0, 2, 3, 1))

    for what in ("forward", "images", "kernel"):
        expected, *others = (result(form, what) for form in _FORMS)
        for other in others:
            error = jnp.linalg.norm(other - expected) / jnp.linalg.norm(expected)
            assert error < 1e-5, (what, error)
    seconds = _interleaved(
        {name: partial(*call[:1], *call[1]) for name, call in calls.items()}, settings
    )
    flops = 2 * y.size * 9 * n_in
    return [
        {
            "side": side,
            "in": n_in,
            "out": n_out,
            "form": form,
            "direction": direction,
            "gflops": flops / float(np.median(times)) / 1e9,
        }
        for (form, direction), times in seconds.items()
    ]


def _interleaved(calls: dict, settings: Settings) -> dict:
    for call in calls.values():
        common.timed(call)
    return common.interleaved(calls, settings.repeats)


def network(settings: Settings) -> list[dict[str, Any]]:
    """The seconds of the U-Net gradient with each form."""
    sides = (8, 8, 1) if settings.quick else (28, 28, 1)
    key_network, key_y, key_noise = jr.split(jr.key(settings.seed), 3)
    unet = eqmdm.nn.UNet(sides, 1, multipliers=(1, 2, 2), key=key_network)
    # The last layer is zero at initialisation, which would make most gradients zero.
    leaves, structure = jax.tree.flatten(unet)
    unet = jax.tree.unflatten(
        structure,
        [
            leaf + 0.02 * jr.normal(key, leaf.shape)
            for leaf, key in zip(leaves, jr.split(key_noise, len(leaves)), strict=True)
        ],
    )
    y = jr.normal(key_y, (settings.batch_size, 1, *sides))
    t = jnp.linspace(0, 1, settings.batch_size)

    def compiled(convolution):
        @eqx.filter_grad
        def loss_fn(unet):
            return jnp.mean(jax.vmap(unet)(t, y) ** 2)

        def replaced(x, weight, window_strides, padding, **options):
            if weight.shape[0] == 3 and window_strides == (1, 1):
                return convolution(x, weight)
            return _xla_convolution(x, weight, window_strides, padding, **options)

        with mock.patch.object(lax, "conv_general_dilated", replaced):
            return cast(Any, eqx.filter_jit(loss_fn)).lower(unet).compile()

    forms = _FORMS | {"in-parts": given_the_batch(in_parts)}
    calls = {
        form: partial(compiled(convolution), unet)
        for form, convolution in forms.items()
    }
    seconds = _interleaved(calls, settings)
    rows = []
    for form, times in seconds.items():
        ratios = np.divide(times, seconds["xla"])
        rows.append(
            {
                "form": form,
                "seconds": float(np.median(times)),
                "over_xla": float(np.median(ratios)),
                "quartiles": np.quantile(ratios, (0.25, 0.75)).tolist(),
            }
        )
    return rows


def main(settings: Settings) -> None:
    layers = _LAYERS
    if settings.quick:
        settings = dataclasses.replace(settings, batch_size=4, repeats=2)
        layers = _LAYERS[-1:]
    facts = common.facts(settings.seed)
    common.show(facts)
    print("GFLOP/s: forward, to the images, to the kernel")
    print(f"{'layer':14} {'matmul':>6}", *(f"{form:>14}" for form in _FORMS))
    layer_rates = []
    for layer in layers:
        found = rates(*layer, settings)
        layer_rates += found
        of = {(row["form"], row["direction"]): row["gflops"] for row in found}
        cells = (
            "/".join(f"{of[form, to]:.0f}" for to in ("forward", "images", "kernel"))
            for form in _FORMS
        )
        print(
            f"{'{0}x{0} {1}->{2}'.format(*layer):14} {of['matmul', 'forward']:6.0f}",
            *(f"{cell:>14}" for cell in cells),
            flush=True,
        )
    gradients = network(settings)
    for row in gradients:
        low, high = row["quartiles"]
        print(
            f"network's gradient, {row['form']:14} {row['seconds']:6.3f} s, "
            f"{row['over_xla']:.2f} of XLA's ({low:.2f}, {high:.2f})"
        )
    common.write(settings, facts, layers=layer_rates, network=gradients)


if __name__ == "__main__":
    main(tyro.cli(Settings))

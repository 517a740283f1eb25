"""The card of a model: what it is, how it was measured and how to load it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._training.run import Run
from ..data._names import is_on_hub, title


# The units of the losses of a bound, by their names in files.
_LOSSES = {"bits_per_dim": "bits/dim", "nats": "nats"}
# Facts of a run that tell about the machine or its user, and nothing about the model.
_PRIVATE_FACTS = ("command", "data_found")
_PRIVATE_DEVICE = ("machine",)


def public_record(run_dir: str | Path) -> dict[str, Any]:
    """The options and facts of a run, without paths of the machine that made it."""
    record = Run(run_dir).read_options()
    options = dict(record["options"])
    for name in ("dataset", "data_dir", "run_dir"):
        value = options.get(name)
        if isinstance(value, str) and Path(value).is_absolute():
            options[name] = title(value)
    if options.get("coordinator") is not None:
        options["coordinator"] = None
    record = {k: v for k, v in record.items() if k not in _PRIVATE_FACTS}
    device = record.get("device")
    if isinstance(device, Mapping):
        shown = {k: v for k, v in device.items() if k not in _PRIVATE_DEVICE}
        record["device"] = shown
    return record | {"options": options}


def read_bound(run_dir: str | Path) -> dict[str, Any] | None:
    """The test bound of a run: its terms and settings; `None` if there is none.

    **Raises:** `ValueError` if the file is damaged.
    """
    path = Path(run_dir) / "test_bound.json"
    if not path.is_file():
        return None
    try:
        bound = json.loads(path.read_text(encoding="utf-8"))
        for term in bound["terms"].values():
            float(term["mean"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"`run_dir` must hold the bound of a run; {path} cannot be read ({error}). "
            "Resume the run to evaluate it again."
        ) from error
    return bound


def model_card(
    name: str,
    kind: str,
    *,
    record: Mapping[str, Any] | None,
    bound: Mapping[str, Any] | None,
    licence: str | None,
    n_parameters: int,
    needs_like: bool,
) -> str:
    """The text of the card, with the front matter of the Hugging Face Hub."""
    options = {} if record is None else record["options"]
    # The Hub has no task for images of given classes.
    image = options.get("network") == "unet" and not options.get("condition")
    arguments = json.dumps(name) + ", like=model" * needs_like
    parts = [_front_matter(name, options, bound, licence, image), f"# {name}", ""]
    parts += [
        f"A diffusion model made with [eqmdm](https://pypi.org/project/eqmdm/): a "
        f"`{kind}` of {n_parameters:,} parameters. The files hold numbers and options, "
        "and no code.",
        "",
        "```python",
        "import eqmdm",
        "",
        f"model = eqmdm.load_pretrained({arguments})",
        "```",
        "",
    ]
    if needs_like:
        parts += ["`like` is a model of the same structure, untrained or not.", ""]
    if bound is not None:
        parts += _figures(bound)
    if record is not None:
        shown = {k: record[k] for k in ("options", "versions", "device") if k in record}
        parts += ["## Training", "", "```json", json.dumps(shown, indent=1), "```", ""]
    return "\n".join(parts)


def _front_matter(
    name: str,
    options: Mapping[str, Any],
    bound: Mapping[str, Any] | None,
    licence: str | None,
    image: bool,
) -> str:
    # Imported late, as in the rest of the package.
    import huggingface_hub as hub

    task = "unconditional-image-generation" if image else "other"
    dataset = str(options.get("dataset", ""))
    results = None
    if bound is not None:
        settings = {k: v for k, v in bound.items() if k != "terms"}
        results = [
            hub.EvalResult(
                task_type=task,
                dataset_type=dataset,
                dataset_name=dataset,
                dataset_split="test",
                metric_type=loss,
                metric_value=term["mean"],
                metric_name=f"negative bound ({unit})",
                metric_args={"standard_error": term["standard_error"], **settings},
            )
            for loss, unit in _LOSSES.items()
            if (term := bound["terms"].get(loss)) is not None
        ]
    card = hub.ModelCardData(
        library_name="eqmdm",
        license=licence,
        pipeline_tag=task if image else None,
        tags=["diffusion", "jax", "equinox"],
        datasets=[dataset] if dataset and is_on_hub(dataset) else None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return f"---\n{card.to_yaml()}\n---\n"


def _figures(bound: Mapping[str, Any]) -> list[str]:
    settings = ", ".join(f"{k}: {v}" for k, v in bound.items() if k != "terms")
    rows = []
    for name, term in bound["terms"].items():
        error = term.get("standard_error")
        error = "not known" if error is None else f"{error:.4f}"
        cells = [name.replace("_", " "), f"{term['mean']:.4f}", error, term["unit"]]
        rows.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return [
        "## Test bound",
        "",
        f"The lower bound of the log-likelihood on the test split ({settings}), and "
        "its terms. Standard errors are over examples.",
        "",
        "| term | mean | standard error | unit |",
        "| --- | ---: | ---: | --- |",
        *rows,
        "",
    ]

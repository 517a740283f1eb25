"""The program `eqmdm train-classifier`, whose features `eqmdm solver-study` uses."""

from tqdm import tqdm

import eqmdm

from ..errors import clean_errors
from . import classifier
from .options import ClassifierOptions


def run(options: ClassifierOptions) -> None:
    # ----- Every wrong option or file fails here, before any work.
    path = options.output or classifier.default_file(options.dataset)
    with clean_errors(options):
        if path.exists():
            raise ValueError(
                f"`output` must be a new file; {path} exists. Delete it, or choose "
                "another --output."
            )
        dataset = eqmdm.data.load(options.dataset, data_dir=options.data_dir)
        # ----- Training, and the accuracy on the test split.
        model, facts = classifier.train(
            dataset,
            seed=options.seed,
            steps=options.steps,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            width=options.width,
            progress=lambda steps: tqdm(steps, desc="training", unit="step"),
        )
        classifier.save(path, model, facts)
    print(
        f"held-out accuracy {facts['accuracy']:.4f} +- {facts['standard_error']:.4f} "
        f"on {facts['examples']} test images\nwritten: {path}"
    )

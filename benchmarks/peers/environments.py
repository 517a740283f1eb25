"""The Python environments of the peers, made from the package registry."""

import dataclasses
import hashlib
import os
import subprocess
from pathlib import Path


HERE = Path(__file__).parent
ENVIRONMENTS = HERE / ".environments"


@dataclasses.dataclass(frozen=True)
class Environment:
    """The contents of a peer's environment.

    - `python`: the version of its interpreter.
    - `installs`: the arguments of successive calls of `pip install`.
    """

    python: str
    installs: tuple[tuple[str, ...], ...]

    @property
    def digest(self) -> str:
        """A digest that identifies the contents of an environment."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


# sbgm's own pins, without torch and torchvision, whose CUDA builds only its data sets
# import.
_SBGM = (
    "beartype==0.19.0",
    "cloudpickle==3.0.0",
    "diffrax==0.6.0",
    "einops>=0.8.0",
    "einx==0.3.0",
    "equinox==0.11.7",
    "jax==0.4.33",
    "jaxlib==0.4.33",
    "matplotlib==3.9.1",
    "ml-collections==0.1.1",
    "numpy==1.26.4",
    "optax==0.2.3",
    "powerbox==0.8.1",
    "scikit-learn==1.5.1",
    "tqdm==4.66.4",
    # Dependencies of these, in the last releases before they required a later JAX.
    "chex<0.1.88",
    "jaxtyping<0.3",
    "lineax<0.0.8",
    "optimistix<0.0.10",
)
ENVIRONMENTS_BY_NAME = {
    # eqmdm again, with GenSBI's version of JAX, to separate the effect of JAX.
    "eqmdm-3.12": Environment("3.12", (("--editable", str(HERE.parents[1])),)),
    "gensbi": Environment("3.12", (("GenSBI==0.5.1",),)),
    "sbgm": Environment("3.12", (_SBGM, ("--no-deps", "sbgm==0.0.38"))),
    # diffusionjax pins no JAX, so it gets the release of eqmdm. Equinox is for the
    # network that all share. torch is the CPU build, for diffusionjax's data loading.
    "diffusionjax": Environment(
        "3.11",
        (
            ("torch==2.13.0",),
            ("jax==0.10.2", "equinox", "optax", "orbax-checkpoint"),
            ("diffusionjax==0.1.8",),
        ),
    ),
    "diffusers": Environment("3.11", (("torch==2.13.0",), ("diffusers", "numpy"))),
    # Without its dependency on torchvision, whose builds need another torch.
    "torch-fidelity": Environment(
        "3.11",
        (("torch==2.13.0", "numpy"), ("--no-deps", "torch-fidelity==0.4.0")),
    ),
}


def interpreter(version: str, given: dict[str, str]) -> str:
    """A Python interpreter of a version: given, on the path, or from pyenv.

    **Raises:**

    `RuntimeError` if there is none.
    """
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = sorted(pyenv.glob(f"{version}.*/bin/python"))
    candidates = [given.get(version), name, *map(str, found)]
    for candidate in filter(None, candidates):
        try:
            # A pyenv shim may be on the path without a working interpreter.
            subprocess.run([candidate, "-c", ""], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    raise RuntimeError(
        f"no Python {version} was found as {name} or below {pyenv}. Install one, or "
        f"name it with `--interpreters {version}=PATH`."
    )


def make(name: str, given: dict[str, str]) -> str:
    """The interpreter of a peer's environment, which is made if it does not exist."""
    wanted = ENVIRONMENTS_BY_NAME[name]
    directory = ENVIRONMENTS / name
    python, made = directory / "bin" / "python", directory / "made"
    if made.exists() and made.read_text() == wanted.digest:
        return str(python)
    base = interpreter(wanted.python, given)
    print(f"making {directory} with {base}", flush=True)
    subprocess.run([base, "-m", "venv", "--clear", str(directory)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    for arguments in (("pip>=25.1",), *wanted.installs):
        subprocess.run([*pip, *arguments], check=True)
    made.write_text(wanted.digest)
    return str(python)

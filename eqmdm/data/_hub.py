"""Files of repositories on the Hugging Face Hub."""

import functools
from collections.abc import Sequence
from pathlib import Path


# The files that are read of a data set whose layout is not known beforehand, its own
# description of splits and configurations among them.
DATA_FILES = ("README.md", "*.parquet", "*.csv", "*.tsv", "*.json", "*.jsonl")
DATA_FILES += ("*.ndjson", "*.arrow", "*.png", "*.jpg", "*.jpeg", "*.webp")


def fetch(
    repository: str,
    patterns: Sequence[str],
    *,
    repo_type: str = "dataset",
    revision: str | None = None,
) -> Path:
    """The folder of a repository's files, which are fetched unless they were before.

    **Raises:** `ConnectionError`, with the reason alone, if that fails.
    """
    # Imported late: most data sets do without.
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import httpx

    download = huggingface_hub.snapshot_download
    if revision is not None:
        download = functools.partial(download, revision=revision)
    try:
        # Fetches only what is not in the cache yet. If the Hub cannot be reached it
        # fails immediately; `datasets.load_dataset` retries for 23 seconds first.
        root = download(
            repository,
            repo_type=repo_type,
            allow_patterns=list(patterns),
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx.HTTPError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConnectionError(reason) from error
    return Path(root)

"""Files of data sets on the Hugging Face Hub."""

from collections.abc import Sequence
from pathlib import Path


# The files that are read of a data set whose layout is not known beforehand, its own
# description of splits and configurations among them.
DATA_FILES = ("README.md", "*.parquet", "*.csv", "*.tsv", "*.json", "*.jsonl")
DATA_FILES += ("*.ndjson", "*.arrow", "*.png", "*.jpg", "*.jpeg", "*.webp")


def fetch(repository: str, patterns: Sequence[str]) -> Path:
    """The folder of a data set's files, which are fetched unless they were before.

    **Raises:** `ConnectionError`, with the reason alone, if that fails.
    """
    # Imported late: most data sets do without.
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import httpx

    try:
        # Fetches only what is not in the cache yet. If the Hub cannot be reached it
        # fails immediately; `datasets.load_dataset` retries for 23 seconds first.
        root = huggingface_hub.snapshot_download(
            repository, repo_type="dataset", allow_patterns=list(patterns)
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx.HTTPError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConnectionError(reason) from error
    return Path(root)

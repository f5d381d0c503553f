"""An exported folder, sent to a model hub by huggingface_hub: endpoint and token are those of that library."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

# What a connection fails with is not in the library's own tree, and is of httpx or of httpx2, by its version.
_HTTP_ERROR: Final[type[BaseException]] = next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")


class PushError(Exception):
    """The folder did not get there; the message says why."""


def push(folder: Path, repository: str, version: str) -> str:
    """Send a folder as one commit to a repository, which is made, private, where there is none; where to see it.

    Raises:
        PushError: the name is none, nobody answers, or the hub says no.
    """
    hub = HfApi(library_name="alignd")
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        done = hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"{version}, by alignd export")
    except (_HTTP_ERROR, ValueError, OSError) as err:  # ValueError: a name or an answer that it cannot read
        raise PushError(f"{repository} at {hub.endpoint}: {str(err).strip() or type(err).__name__}") from err
    return str(done.commit_url)

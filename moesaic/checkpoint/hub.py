"""Files of a repository on the Hugging Face hub, brought into its local cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moesaic.errors import CheckpointError


def download(repo_id: str, wanted: list[str], ignored: list[str] | None = None, revision: str | None = None) -> Path:
    """Bring files to this machine, those that are here already for nothing; return their folder.

    Args:
        repo_id: 'owner/name'.
        wanted: patterns of file names; a repository that has no such file is no mistake.
        ignored: patterns that win over those wanted.
        revision: a commit; None: the newest.

    Returns:
        A folder that is named after the commit.

    Raises:
        CheckpointError: there is no such repository, the connection failed, or the disk is full.
    """
    import huggingface_hub

    with _told_in_two_lines(repo_id):
        return Path(
            huggingface_hub.snapshot_download(
                repo_id, revision=revision, allow_patterns=wanted, ignore_patterns=ignored
            )
        )


def list_files(repo_id: str, revision: str) -> list[str]:
    """List the files of a commit.

    Raises:
        CheckpointError: as `download`.
    """
    import huggingface_hub

    with _told_in_two_lines(repo_id):
        return huggingface_hub.list_repo_files(repo_id, revision=revision)


@contextmanager
def _told_in_two_lines(repo_id: str) -> Iterator[None]:
    # The client's errors have no base of their own, and its HTTP library, with the errors of a broken connection,
    # is another one in every few releases.
    try:
        yield
    except Exception as failure:
        reason = (str(failure).strip() or type(failure).__name__).splitlines()[0]
        raise CheckpointError(
            f"no folder '{repo_id}' here, and the hub does not give it: {reason}",
            "check the name and the connection",
        ) from failure

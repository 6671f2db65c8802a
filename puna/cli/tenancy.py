"""Options about who is served and how much: limits of tenants, and where keys come from."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from puna.cli.options import wrong_usage
from puna.errors import InputError

if TYPE_CHECKING:
    from puna.server.tenants import KeySources

_LIMITS = "Limits"


def _limit(name: str, what: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        name,
        min=0,
        rich_help_panel=_LIMITS,
        help=f"{what} of each tenant that has no limits of its own; 0: any.",
    )
    return option


@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """As in `puna.server.limits.Limits`."""

    requests_per_minute: Annotated[int, _limit("--requests-per-minute", "Requests a minute")] = 0
    tokens_per_minute: Annotated[int, _limit("--tokens-per-minute", "Tokens a minute, read and drawn,")] = 0
    concurrency: Annotated[int, _limit("--concurrency", "Requests at once")] = 0
    context_tokens: Annotated[int, _limit("--context-tokens", "Context in tokens")] = 0


def key_sources(api_key: str | None, file: Path | None, limits: LimitOptions) -> KeySources:
    """From the command line and the environment. BadParameter where a key cannot be one."""
    from puna.server.keys import DEFAULT_TENANT, KeyEntry, keys_of_environment, plain_entry
    from puna.server.limits import Limits
    from puna.server.tenants import KeySources

    given: list[KeyEntry] = []
    try:
        if api_key is not None:
            given.append(plain_entry(api_key, DEFAULT_TENANT))
        if "PUNA_ADMIN_KEY" in os.environ:
            given.append(plain_entry(os.environ["PUNA_ADMIN_KEY"], "admin", admin=True))
        given += keys_of_environment(os.environ.get("PUNA_API_KEYS", ""))
        return KeySources(tuple(given), file, Limits(**asdict(limits)))
    except InputError as error:
        raise wrong_usage(error) from None

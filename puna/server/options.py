"""What a server is told when it starts, beyond what concerns its engine. Knows no web framework."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from puna.engine.supervisor import HANG_S
from puna.server.tenants import KeySources


@dataclass(frozen=True)
class ServeOptions:
    """`names`: what clients may call the model. `port` 0 takes any free one."""

    names: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    keys: KeySources = field(default_factory=KeySources)
    max_body_bytes: int = 16 << 20
    max_connections: int = 4096
    cors_origins: tuple[str, ...] = ()
    drain_s: float = 5.0
    hang_s: float = HANG_S
    dialect: str = "openai"
    strict: bool = False
    metrics_names: Literal["puna", "vllm"] = "puna"
    store_bytes: int = 64 << 20
    state: Path | None = None
    log_prompts: bool = False
    otlp: str | None = None
    tool_format: str = "auto"
    reasoning_format: str = "auto"

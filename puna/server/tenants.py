"""Who a request belongs to: from the key it carries to a tenant and its limits, and all of it read again on demand.

Without any key the server is open, and everyone is the same tenant. Requests that run keep their tenant when keys are
taken away; new ones are refused. It knows which header carries a key; what a tenant may do is in limits.py.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Scope

from puna.errors import InputError
from puna.server.asked import ASKED
from puna.server.errors import RequestError
from puna.server.keys import DEFAULT_TENANT, KeyEntry, KeyFile, KeyRing, read_key_file
from puna.server.limits import Limits, Tenant

LOOK_S = 1.0  # how often the file of keys is looked at

log = logging.getLogger("puna.server")
_IN_SCOPE = "puna.served"


@dataclass(frozen=True)
class KeySources:
    """Where keys come from: given ones (command line, environment), and a file. `limits` are those of tenants that have
    none of their own."""

    given: tuple[KeyEntry, ...] = ()
    file: Path | None = None
    limits: Limits = field(default_factory=Limits)


class Tenants:
    """Raises InputError when it is made from a file that cannot be used."""

    def __init__(self, sources: KeySources) -> None:
        self._sources = sources
        self._tenants: dict[str, Tenant] = {}
        self._stamp: tuple[int, int, int] | None = None
        self.reload()

    @property
    def is_open(self) -> bool:
        """Whether requests to the model need no key. A file of keys closes the server even while it is empty."""
        return self._sources.file is None and not any(not entry.admin for entry in self._ring)

    @property
    def has_admin(self) -> bool:
        return any(entry.admin for entry in self._ring)

    def reload(self) -> int:
        """Reads the file again; the number of keys. InputError where it cannot be used: the old keys go on."""
        path = self._sources.file
        stamp = _stamp(path)
        file = KeyFile() if path is None else read_key_file(path)
        self._stamp = stamp
        self._ring = KeyRing([*self._sources.given, *file.keys])
        self._limits = file.tenants
        for name, tenant in self._tenants.items():
            tenant.set_limits(self._limits.get(name, self._sources.limits))
        return len(self._ring)

    async def watch(self) -> None:
        """Reads the file again whenever it has changed; until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            if _stamp(self._sources.file) != self._stamp:
                self.try_reload()

    def try_reload(self) -> None:
        """As `reload`, with what is wrong in the log: nobody is there to be told."""
        try:
            log.warning("keys were read again: %d", self.reload())
        except InputError as error:
            self._stamp = _stamp(self._sources.file)  # said once
            log.error("the keys of before go on: %s", error)

    def of(self, headers: Headers) -> Tenant:
        """The tenant whose key a request carries. RequestError: 401 without a key that is known, 403 with an
        administrative one."""
        if self.is_open:
            return self.named(DEFAULT_TENANT)
        entry = self._entry(headers)
        if entry.admin:
            raise RequestError(
                "this key is administrative; requests to the model need the key of a tenant",
                status=403,
                code="wrong_kind_of_key",
            )
        return self.named(entry.tenant)

    def check_admin(self, headers: Headers) -> None:
        """RequestError unless a request carries an administrative key."""
        if not self.has_admin:
            raise RequestError(
                "this needs an administrative key, and this server has none; `puna keys add --admin` makes one",
                status=403,
                code="no_admin_key",
            )
        if not self._entry(headers).admin:
            raise RequestError("this needs an administrative key", status=403, code="wrong_kind_of_key")

    def named(self, name: str) -> Tenant:
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = self._tenants[name] = Tenant(name, self._limits.get(name, self._sources.limits))
        return tenant

    def all(self) -> list[Tenant]:
        """Every tenant that has a key or was served, by name."""
        names = {entry.tenant for entry in self._ring if not entry.admin} | set(self._tenants)
        return [self.named(name) for name in sorted(names)]

    def _entry(self, headers: Headers) -> KeyEntry:
        entry = self._ring.find(_key_of(headers))
        if entry is None:
            raise RequestError(
                "a valid API key is needed; send the header 'authorization: Bearer <key>'",
                status=401,
                code="invalid_api_key",
            )
        return entry


def tenant_of(request: Request) -> Tenant:
    """Whom the door let in."""
    tenant = request.scope[_IN_SCOPE]
    assert isinstance(tenant, Tenant)
    return tenant


def set_tenant(scope: Scope, tenant: Tenant) -> None:
    scope[_IN_SCOPE] = tenant
    if (asked := ASKED.get()) is not None:
        asked.tenant = tenant.name


def _key_of(headers: Headers) -> str:
    """OpenAI's clients send a bearer token, Anthropic's a header of its own."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    """Differs where a file was written anew."""
    try:
        status = path.stat() if path is not None else None
    except OSError:
        return None
    return None if status is None else (status.st_mtime_ns, status.st_size, status.st_ino)

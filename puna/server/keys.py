"""API keys: how one is made, what is kept of it, and who it names.

Only the SHA-256 of a key is kept. A fast hash is right here: a key that `puna keys add` makes is 256 random bits, so
there is nothing to guess, and a slow hash would only give whoever sends wrong keys a way to keep the server busy. It
reads the file's text; it knows nothing of HTTP, and a key never gets into an error or a log.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from puna.errors import InputError
from puna.server.limits import Limits

DEFAULT_TENANT = "default"
KEY_PREFIX = "puna-"
ID_CHARS = 12

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VISIBLE = re.compile(r"[\x21-\x7e]+")


class KeyEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of one key. An administrative one does not serve for requests to the model, and has no limits."""

    tenant: str
    sha256: str
    admin: bool = False
    created: datetime.datetime | None = None

    def __post_init__(self) -> None:
        check_tenant(self.tenant)
        if not _SHA256.fullmatch(self.sha256):
            raise InputError(f"a key of {self.tenant}: sha256 takes 64 hexadecimal digits in lower case")

    @property
    def id(self) -> str:
        """Names the key without giving it away."""
        return self.sha256[:ID_CHARS]


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of keys as it is written: the keys, and the limits of tenants that have their own."""

    keys: list[KeyEntry] = []
    tenants: dict[str, Limits] = {}


class KeyRing:
    """Keys to look up. Neither what is looked up nor how long it takes tells about keys that were not given: the place
    in the table depends on a secret of this process, and what stands there is compared in constant time."""

    def __init__(self, entries: Iterable[KeyEntry]) -> None:
        self._secret = secrets.token_bytes(32)
        self._entries = {self._place(entry.sha256): entry for entry in entries}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[KeyEntry]:
        return iter(self._entries.values())

    def find(self, key: str) -> KeyEntry | None:
        sha256 = hash_key(key)
        entry = self._entries.get(self._place(sha256))
        return entry if entry is not None and hmac.compare_digest(entry.sha256, sha256) else None

    def _place(self, sha256: str) -> bytes:
        return hmac.digest(self._secret, sha256.encode(), "sha256")


def new_key() -> str:
    """256 bits of the system's randomness."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def plain_entry(key: str, tenant: str = DEFAULT_TENANT, *, admin: bool = False) -> KeyEntry:
    """The entry of a key that is given as it is. InputError where no header could carry it."""
    if not _VISIBLE.fullmatch(key):
        raise InputError(f"the key of {tenant} has to be made of visible ASCII characters, at least one")
    return KeyEntry(tenant=tenant, sha256=hash_key(key), admin=admin)


def check_tenant(name: str) -> None:
    if not _TENANT.fullmatch(name):
        raise InputError(
            f"{name[:80]!r} cannot name a tenant; it takes 1 to 64 letters, digits, dots, dashes and underscores, "
            "a letter or digit first"
        )


def read_key_file(path: Path) -> KeyFile:
    """InputError names the file, the place and what is wrong."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"cannot read the keys in {path}: {reason}; `puna keys add` writes such a file") from None
    return parse_key_file(text, str(path))


def parse_key_file(text: str, where: str) -> KeyFile:
    try:
        file = msgspec.toml.decode(text, type=KeyFile)
    except (msgspec.MsgspecError, ValueError) as error:
        raise InputError(f"the keys in {where} cannot be used: {error}") from None
    for name in file.tenants:
        check_tenant(name)
    seen: set[str] = set()
    for entry in file.keys:
        if entry.sha256 in seen:
            raise InputError(f"the keys in {where} cannot be used: the key {entry.id} stands there twice")
        seen.add(entry.sha256)
    return file


def keys_of_environment(text: str) -> list[KeyEntry]:
    """`PUNA_API_KEYS`: TENANT=KEY, or TENANT=sha256:HASH, with white space between. InputError shows no key."""
    entries: list[KeyEntry] = []
    for number, item in enumerate(text.split(), start=1):
        tenant, sign, key = item.partition("=")
        if not sign or not key:
            raise InputError(f"PUNA_API_KEYS takes TENANT=KEY, separated by white space; entry {number} is none")
        if key.startswith("sha256:"):
            entries.append(KeyEntry(tenant=tenant, sha256=key.removeprefix("sha256:")))
        else:
            entries.append(plain_entry(key, tenant))
    return entries

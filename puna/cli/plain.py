"""Text from strangers as a terminal may show it: from a model file's metadata, say, or a name that was typed.

Control characters could move the cursor, change colours or retitle the window; they are shown as escapes instead.
"""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str, limit: int = 1000) -> str:
    """One line of at most about `limit` characters, cut in the middle."""
    if len(text) > limit:
        half = limit // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)

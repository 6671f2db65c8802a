"""What a model's file or folder has to offer, whatever its container.

Containers are GGUF (gguf.py) and safetensors with a config.json (safetensors.py). Families read facts and name weights;
they ask this, and never a container's own reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol

from puna.kernels.tensor import RawTensor

if TYPE_CHECKING:
    from puna.models.facts import Facts
    from puna.models.tokenizer import Tokenizer

Container = Literal["gguf", "safetensors"]


class ModelFile(Protocol):
    """`path` is the file or folder as it was named, `size` the bytes of all its parts. `metadata` is what the container
    says beside weights, for display. Tensors are views into mapped files, or made from them when their bytes are asked
    for."""

    @property
    def container(self) -> Container: ...

    @property
    def path(self) -> Path: ...

    @property
    def size(self) -> int: ...

    @property
    def tensors(self) -> Mapping[str, RawTensor]: ...

    @property
    def stored(self) -> Mapping[str, RawTensor]:
        """Tensors as they lie in the files, none of them made from others."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]: ...

    @property
    def architecture(self) -> str:
        """As the container names it: `general.architecture`, or `model_type`."""
        ...

    @property
    def name(self) -> str | None:
        """What the model calls itself."""
        ...

    @property
    def licence(self) -> str | None: ...

    @property
    def chat_template(self) -> str | None: ...

    def facts(self) -> Facts: ...

    def tokenizer(self) -> Tokenizer:
        """Raises ModelFileError where the vocabulary is missing or broken."""
        ...

    def tokenizer_kind(self) -> str:
        """In a few words; "none" where there is none. Decodes nothing."""
        ...

    def fingerprint(self) -> str:
        """Names the contents: 16 hex digits, from sizes, headers and samples of the weights."""
        ...

    def release_pages(self) -> None:
        """Gives back the memory of what was read so far."""
        ...

    def fail(self, message: str) -> NoReturn:
        """Raises ModelFileError with the path before the message."""
        ...

"""What a format of artifacts is: how it is recognised, and what validation finds out.

A format is a module, or any other object, with these attributes. The entry points of the group
`shoal.formats` name the formats; those that come with Shoal stand in its own pyproject.toml.
"""

from dataclasses import dataclass
from typing import Protocol

from services.registry.formats.artifact import Artifact
from services.registry.formats.tensor import Tensor


@dataclass(frozen=True, slots=True)
class Described:
    """What validation found out about an artifact, without running any of it.

    Formats that do not record tensors leave `inputs` and `outputs` empty. `defaults` are inputs
    that may be left out. `batched` says whether
    the first dimension of every tensor is a batch; shapes include it. `notes` are facts for people,
    such as the opset. `file` is the file that a server opens, relative to the artifact; "" is the
    artifact itself. `code` are sentences about what would run when this very artifact is opened,
    beyond what its format always runs.
    """

    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    batched: bool = False
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    file: str = ""
    code: tuple[str, ...] = ()
    needs: tuple[tuple[str, str], ...] = ()
    inner: str = ""
    defaults: tuple[Tensor, ...] = ()


class Format(Protocol):
    """A format of artifacts."""

    @property
    def name(self) -> str:
        """The word for it in commands and provenance, such as "onnx"."""
        ...

    @property
    def backend(self) -> str:
        """Triton's backend that serves it as it is, or "" if it must be converted first."""
        ...

    @property
    def runs_code(self) -> str:
        """Why opening it runs code that came with it, or "" if it does not."""
        ...

    def detect(self, artifact: Artifact, /) -> bool:
        """Return whether the artifact has this format, by its content.

        Reads a bounded number of bytes.
        """
        ...

    def validate(self, artifact: Artifact, /) -> Described:
        """Return what the artifact says about itself; nothing of it is run. Raises Refusal."""
        ...

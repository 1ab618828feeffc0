# SPDX-License-Identifier: Apache-2.0
"""Everything that edgereels raises on purpose.

::

    EdgereelsError
    ├── CheckpointError     weights on disk that export cannot read or that do not fit the network
    ├── PackageError        a package that is damaged, unlisted, unknown or unsafe; raised before an engine sees a byte
    ├── EngineError         an engine that is missing, refuses a graph, or would have fallen back silently
    │   └── NotFiniteError      a pass came out as NaN or Inf
    ├── MediaError          a sound or a picture that cannot be used
    ├── NoiseError          recorded draws that do not fit the render
    ├── OutputError         a file that cannot be written
    ├── UsageError          arguments that make no sense or don't go together; also a ValueError
    ├── VerificationError   results that leave their tolerance
    └── MissingExtraError   an optional dependency that is not installed; the message is the pip line

A message is one line: what was found, what was expected, what to do.

`Stopped` is no error: it unwinds a process that was asked to end.
"""


class EdgereelsError(Exception):
    """Root of everything raised on purpose; a command line prints it as one line and exits with 1."""


class CheckpointError(EdgereelsError):
    """Weights on disk cannot be read or do not fit the network."""


class PackageError(EdgereelsError):
    """A package is damaged, unlisted, unknown or unsafe.

    `code` names the rule that was broken (docs/package-format.md lists them), for programs; the message is for people.
    """

    def __init__(self, message: str, *, code: str = "package") -> None:
        super().__init__(message)
        self.code = code


class EngineError(EdgereelsError):
    """An engine is missing, refuses a graph, or gave something else than what was asked."""


class NotFiniteError(EngineError):
    """A pass of the network came out as NaN or Inf; a live stream loses one chunk over it, a render ends."""


class MediaError(EdgereelsError):
    """A sound or a picture cannot be used."""


class NoiseError(EdgereelsError):
    """Recorded draws do not fit the render."""


class OutputError(EdgereelsError):
    """A file cannot be written."""


class UsageError(EdgereelsError, ValueError):
    """Arguments make no sense or don't go together; a command line exits with 2."""


class VerificationError(EdgereelsError):
    """Results leave their tolerance."""


class MissingExtraError(EdgereelsError):
    """An optional dependency is not installed."""

    def __init__(self, module: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the module {module!r}, which is not installed: pip install 'edgereels[{extra}]'"
        )


class Stopped(BaseException):
    """The process was asked to end (SIGTERM). What is being written is finished with what there is, and closed."""

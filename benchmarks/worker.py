# SPDX-License-Identifier: Apache-2.0
"""The child's side of `rounds.Worker`: makes a contender and does the jobs that it is asked for.

    python -m edgereels.benchmarks.worker '{"kind": "onnxruntime", …}'

A job is a line of JSON on standard input, `{"job": NAME, …}`: NAME is a method of the contender, the rest its
arguments. The answer is a line on standard output, `{"result": …}` or `{"error": …}`; whatever libraries print goes to
standard error.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any


def contender(kind: str, **settings: Any) -> Any:
    """Return a contender: an object whose public methods are the jobs it can do.

    Raises:
        ValueError: a kind that does not exist.
    """
    if kind == "edgereels":
        from .own_session import OwnSession

        return OwnSession(**settings)
    if kind == "parts":
        from .own_session import DitParts

        return DitParts(**settings)
    if kind == "ladder":
        from .own_ladder import OwnLadder

        return OwnLadder(**settings)
    if kind == "onnxruntime":
        from .peer_onnxruntime import PlainOnnxRuntime

        return PlainOnnxRuntime(**settings)
    if kind == "openvino":
        from .peer_openvino import PlainOpenVino

        return PlainOpenVino(**settings)
    if kind == "torch":
        from .peer_torch import PlainTorch

        return PlainTorch(**settings)
    raise ValueError(
        f"contender {kind!r} is unknown; expected edgereels, parts, ladder, onnxruntime, openvino or torch"
    )


def answer(make: Callable[[], Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """Do one job and return what to say: its result, or what went wrong in one line."""
    arguments = dict(request)
    job = arguments.pop("job")
    try:
        return {"result": getattr(make(), job)(**arguments)}
    except Exception as error:  # contenders are other people's programs: the parent records how they fail
        return {"error": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"}


def main(argv: list[str] | None = None) -> int:
    """Answer jobs until standard input ends."""
    settings = json.loads((sys.argv[1:] if argv is None else argv)[0])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    made: list[Any] = []

    def make() -> Any:
        if not made:
            made.append(contender(**settings))
        return made[0]

    for line in sys.stdin:
        answers.write(json.dumps(answer(make, json.loads(line))) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())

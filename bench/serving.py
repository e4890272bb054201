"""The worker's side of bench/pool.py: one line of JSON asks, one line answers, a failure is an answer too."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, TextIO


def serve(requests: TextIO, replies: TextIO, make: Callable[..., Any], loaded: Callable[[Any], dict[str, Any]]) -> None:
    """Makes what the first line describes and answers with `loaded` of it; each further line names one of its methods
    under `do`. Ends when nothing could be made.
    """
    made: Any = None
    for line in requests:
        asked = json.loads(line)
        try:
            if made is None:
                made = make(**asked)
                answer = loaded(made)
            else:
                answer = getattr(made, asked.pop("do"))(**asked)
        except (Exception, SystemExit) as error:
            lines = str(error).strip().splitlines() or [""]
            answer = {"error": f"{type(error).__name__}: {lines[0][:200]}"}
        replies.write(json.dumps(answer) + "\n")
        replies.flush()
        if made is None:
            return


def serve_stdin(make: Callable[..., Any], loaded: Callable[[Any], dict[str, Any]]) -> None:
    """Serves stdin. What libraries print goes to stderr, so that it can't garble the answers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends its workers itself
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)
        serve(sys.stdin, replies, make, loaded)

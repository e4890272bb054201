"""audiocraft asks `os.uname` which cluster it runs on; Windows has none, and is no cluster."""

import functools
import os
from typing import Any

from micro_musicgen.patching import Patch


def _apply(module: Any) -> None:
    guess = module._guess_cluster_type

    @functools.wraps(guess)
    def guess_cluster_type() -> Any:
        return guess() if hasattr(os, "uname") else module.ClusterType.DEFAULT

    module._guess_cluster_type = guess_cluster_type


PATCH = Patch(
    name="cluster_type",
    target="audiocraft.utils.cluster:_guess_cluster_type",
    broken="AttributeError (os.uname) on Windows",
    issue="AC #93 #248 #475, VoiceCraft #29",
    fingerprints=("2131d8320f7baae2",),
    gone_when="audiocraft asks platform.uname",
    apply=_apply,
    needed=lambda: not hasattr(os, "uname"),
)

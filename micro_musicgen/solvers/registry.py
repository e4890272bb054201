"""The solvers by name. Their modules are imported when a name is asked for, so that listing costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from micro_musicgen.registry import Registry

_HOMES = {
    "musicgen": "micro_musicgen.solvers.lm",
    "compression": "micro_musicgen.solvers.codec",
    "diffusion_decoder": "micro_musicgen.solvers.diffusion_decoder",
    "musicgen_upstream": "micro_musicgen.solvers.upstream",
    "compression_upstream": "micro_musicgen.solvers.upstream",
}
"""Where the solvers that ship register themselves. Third parties just register, before the name is asked for."""


class SolverRegistry(Registry[Callable[..., Any]]):
    """A registry that knows which module brings a name that is not there yet."""

    def get(self, name: str) -> Callable[..., Any]:
        """Gives the solver class or factory called `name`; see `Registry.get`."""
        if name not in self and name in _HOMES:
            import_module(_HOMES[name])
        return super().get(name)


solvers = SolverRegistry("solver")

"""The shipped solver configs keep the moving average on `cuda`; a machine without it keeps it beside the weights."""

import functools
from typing import Any

from micro_musicgen.patching import Patch


def _apply(module: Any) -> None:
    init = module.ModuleDictEMA.__init__

    @functools.wraps(init)
    def init_where_possible(
        self: Any, module_dict: Any, decay: float = 0.999, unbias: bool = True, device: Any = "cpu"
    ) -> None:
        wants_cuda = str(device).startswith("cuda")
        # None is upstream's word for "where the weights are".
        init(self, module_dict, decay, unbias, None if wants_cuda and not module.torch.cuda.is_available() else device)

    module.ModuleDictEMA.__init__ = init_where_possible


PATCH = Patch(
    name="ema_device",
    target="audiocraft.optim.ema:ModuleDictEMA.__init__",
    broken="optim.ema.device: cuda, the default, raises on a machine without CUDA",
    issue="AC #231",
    fingerprints=("21dbf2c484ab9545",),
    gone_when="the average follows the weights by default",
    apply=_apply,
)

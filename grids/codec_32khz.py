"""Which tiny EnCodec to build a model on: its width, the number of its codebooks, and their size.

    MICRO_MUSICGEN_GRID_DSET=breaks dora -P micro_musicgen grid codec_32khz

What a codec costs a language model is bits per frame: codebooks times log2 of their size. Two codecs of equal
distance (`mel`) differ by that, and by usage: a codebook that is half empty is paid for in full.
"""

from __future__ import annotations

from dora import Launcher

from micro_musicgen.explorers import CodecExplorer

from . import _choices

FILTERS = (8, 16, 32)
CODEBOOKS = (2, 4, 8)
BINS = (256, 1024)


def explore(launcher: Launcher) -> None:
    """Schedules the runs, one job array a width: they need like machines."""
    codec = launcher.bind({"solver": "compression/micro_32khz", "model": "encodec/nano_32khz"})
    codec.bind_({"dset": f"audio/{_choices.dataset()}"})
    for filters in FILTERS:
        with codec.job_array():
            for codebooks in CODEBOOKS:
                for bins in BINS:
                    codec({"seanet.n_filters": filters, "rvq.n_q": codebooks, "rvq.bins": bins})


explorer = CodecExplorer(explore)

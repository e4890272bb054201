"""One mended defect of an installed library per file. Each file makes one `PATCH`; see micro_musicgen/patching.py."""

import micro_musicgen.upstream  # noqa: F401  (a patch asked for by itself finds the helpers in there half made)

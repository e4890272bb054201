"""One mended defect of an installed library per file. Each file makes one `PATCH`; see micro_musicgen/patching.py."""

"""`sacct -o JobID,State,NodeList --parsable2 -j A -j B`, answered from `scontrol` on a Slurm without accounting.

submitit, and so Dora, reads the state of jobs this way and no other. Without it every state is unknown for ever.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence


def rows(listing: str, wanted: Sequence[str]) -> Iterator[str]:
    """Gives sacct's lines for the jobs in `scontrol -o show job`, those of `wanted` only unless that is empty."""
    yield "JobID|State|NodeList"
    for line in listing.splitlines():
        facts = dict(re.findall(r"(?:^| )([A-Za-z]+)=(\S*)", line))
        if "JobId" not in facts:
            continue
        array, name = facts.get("ArrayJobId"), facts["JobId"]
        if wanted and name not in wanted and array not in wanted:
            continue
        if array:
            task = facts.get("ArrayTaskId", "")
            name = f"{array}_{task}" if task.isdigit() else f"{array}_[{task}]"
        state = facts["JobState"]
        yield f"{name}|{'CANCELLED by 0' if state == 'CANCELLED' else state}|{facts.get('NodeList', '')}"


def main() -> None:
    """Prints what sacct would."""
    wanted = [value for flag, value in zip(sys.argv, sys.argv[1:], strict=False) if flag == "-j"]
    listing = subprocess.run(["scontrol", "-o", "show", "job"], capture_output=True, text=True).stdout
    sys.stdout.write("\n".join(rows(listing, wanted)) + "\n")


if __name__ == "__main__":
    main()

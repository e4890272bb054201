#!/bin/sh
# What `make test-slurm` does: installs Slurm where it may, then runs the tests that need it, without root where it can.
# Where it can do neither it says so in one line and ends well. usage: tests/slurm/run.sh PYTHON [pytest arguments]
set -eu
cd "$(dirname "$0")/../.."
python=$1
shift
packages="slurmctld slurmd slurm-client munge"

skip() {
    echo "test-slurm: skipped: $1"
    exit 0
}

is_there() {
    PATH=$PATH:/usr/sbin:/sbin
    for program in slurmctld slurmd munged sbatch srun; do
        command -v "$program" > /dev/null || return 1
    done
}

if ! (is_there); then
    command -v apt-get > /dev/null || skip "no Slurm and no apt here; install $packages by hand"
    [ "$(id -u)" = 0 ] || skip "no Slurm here and no right to install it; install $packages by hand"
    log=$(mktemp)
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages; } \
        > "$log" 2>&1 || { tail -3 "$log"; skip "apt-get could not install $packages"; }
fi

as=""
if [ "$(id -u)" = 0 ] && command -v runuser > /dev/null &&
    runuser -u nobody -- "$python" -c "import micro_musicgen.train" 2> /dev/null; then
    as="runuser -u nobody --"
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
[ -z "$as" ] || chown nobody "$scratch"
echo "test-slurm: as ${as:+nobody, not }$(id -un)"
export HOME="$scratch" COVERAGE_FILE="$scratch/coverage"
$as "$python" -B -m pytest -q -n 0 -p no:cacheprovider -m slurm --basetemp="$scratch/pytest" "$@" tests/slurm

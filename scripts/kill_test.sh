#!/bin/sh
# Kills a small run N times (30) at random moments with SIGKILL, resumes it, and compares its students with those of a run
# that was never killed: scripts/kill_test.sh [N [SEED]]
set -eu
cd "$(dirname "$0")/.."
DFKA_KILLS=${1:-30} DFKA_KILL_SEED=${2:-1} cargo test --test program kill::

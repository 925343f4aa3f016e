#!/bin/sh
# Kills a small run with SIGKILL at N random moments, resumes it each time, and compares its students with
# those of a run that was not killed: scripts/kill_test.sh [N [SEED]], by default 30 times with seed 1.
set -eu
cd "$(dirname "$0")/.."
DFKA_KILLS=${1:-30} DFKA_KILL_SEED=${2:-1} cargo test --test program kill::

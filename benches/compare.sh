#!/usr/bin/env bash
# Times every training step in the engine and in PyTorch, alternately, and prints a table.
#   benches/compare.sh [ROUNDS [SECONDS [THREADS]]]     PYTHON names an interpreter with torch, VARIANTS those of step.py.
# Columns: the median over the rounds of each round's median, the least time of all rounds, and the least
# processor time, each for the engine and PyTorch and as a ratio ours / PyTorch. For each row and column
# PyTorch's fastest variant counts.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-5} seconds=${2:-1} threads=${3:-2}
raw=$(mktemp)
trap 'rm -f "$raw"' EXIT
cargo build --release --bench step
for round in $(seq "$rounds"); do
  cargo bench --quiet --bench step -- "$seconds" "$threads" >>"$raw"
  "${PYTHON:-python3}" benches/torch/step.py --device cpu --seconds "$seconds" --threads "$threads" --tsv \
    ${VARIANTS:+--variants "$VARIANTS"} >>"$raw"
done
echo "# rounds $rounds, seconds $seconds, threads $threads"
cat "$raw"
echo
awk -F'\t' '
  function median(list,   v, n, i, j, t) {
    n = split(list, v, " ")
    for (i = 2; i <= n; i++) for (j = i; j > 1 && v[j] + 0 < v[j - 1] + 0; j--) { t = v[j]; v[j] = v[j - 1]; v[j - 1] = t }
    return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
  }
  function lower(a, b) { return a == "" || b + 0 < a + 0 ? b + 0 : a }
  {
    if (!($1 in seen)) { seen[$1] = 1; rows[++count] = $1 }
    medians[$1, $2] = medians[$1, $2] " " $3
    least[$1, $2] = lower(least[$1, $2], $4)
    cpu[$1, $2] = lower(cpu[$1, $2], $5)
    if ($2 != "ours") variants[$2] = 1
  }
  END {
    printf "%-20s %8s %8s %6s   %8s %8s %6s   %8s %8s %6s\n", "ms", "ours", "torch", "ratio", "least", "torch", "ratio", "cpu", "torch", "ratio"
    for (i = 1; i <= count; i++) {
      r = rows[i]; m = l = c = ""
      for (v in variants) { m = lower(m, median(medians[r, v])); l = lower(l, least[r, v]); c = lower(c, cpu[r, v]) }
      o = median(medians[r, "ours"])
      printf "%-20s %8.1f %8.1f %6.2f   %8.1f %8.1f %6.2f   %8.1f %8.1f %6.2f\n", r, o, m, o / m, least[r, "ours"], l, least[r, "ours"] / l, cpu[r, "ours"], c, cpu[r, "ours"] / c
    }
  }' "$raw"

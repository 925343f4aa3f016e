"""Prints the summaries of all runs in a folder as one Markdown table.

Its columns have the mAP of the teachers, and of the student after each block.
"""

import json
import pathlib
import sys

print("| run | labels | teachers | after block 1 / 2 / 3 / 4 | branch | student | of teachers | minutes |")
print("|---|---|---|---|---|---|---|---|")
for path in sorted(pathlib.Path(sys.argv[1]).glob("*/summary.json")):
    s = json.loads(path.read_text())
    blocks = " / ".join(f"{b['map']:.1f}" for b in s["student"]["by_block"])
    teachers, student = s["teachers"]["mean"]["map"], s["student"]["map"]
    block = s["branch"][0]["block"]
    print(
        f"| {path.parent.name} | {len(s['labels'])} | {teachers:.1f} | {blocks} | {block} | {student:.1f} "
        f"| {100 * student / teachers:.1f} % | {s['seconds']['total'] / 60:.1f} |"
    )

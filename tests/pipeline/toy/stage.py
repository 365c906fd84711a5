"""A stage of the toy project: writes what it read, and a receipt. `pause` in params.yaml makes it slow or failing."""

import json
import os
import sys
import time
from pathlib import Path

from ruamel.yaml import YAML

name, out = sys.argv[1], Path(sys.argv[2])
with open("params.yaml", encoding="utf-8") as file:
    params = YAML(typ="safe").load(file)
switch = Path("switch") / name  # not a dependency: what a test does to a stage must not change its hash
if switch.exists():
    order = switch.read_text()
    if order == "fail":
        print("the toy broke", flush=True)
        sys.exit(1)
    if order == "refuse":
        sys.exit(2)
    Path("switch", name + ".pid").write_text(str(os.getpid()))
    print("waiting", flush=True)
    while switch.exists():
        time.sleep(0.05)
kind, _, item = name.partition("@")
values = {"own": params.get(kind, {}).get("value"), "knobs": params["knobs"].get(item)}
out.parent.mkdir(parents=True, exist_ok=True)
out.write_text(json.dumps(values, sort_keys=True) + "\n")
receipt = Path("reports/receipts", name + ".json")
receipt.parent.mkdir(parents=True, exist_ok=True)
receipt.write_text(
    json.dumps(
        {
            "stage": name,
            "nonce": os.environ.get("GRAPE_NONCE"),
            "headline": {"gold": 0.5},
            "threads": os.environ["OMP_NUM_THREADS"],
            "parent": os.environ.get("GRAPE_PARENT_RUN"),
        }
    )
)
print("made", out, flush=True)

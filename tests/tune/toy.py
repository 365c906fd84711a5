"""Stands for the stages of a project: it trains nothing, says how good a learning rate is, and tells a log outside that it ran."""

import json
import math
import os
import sys
import time
from pathlib import Path

from ruamel.yaml import YAML

from grape.project import Project
from grape.track import StageRun

kind, *given = sys.argv[1:]
algorithm, seed = (given[1], given[3]) if given else ("", "")
name, switches = f"{algorithm}-{seed}", Path(os.environ["TOY_SWITCHES"])
params = YAML(typ="safe").load(Path("params.yaml"))
knobs = params["algorithms"].get(algorithm) or {}
rate = knobs.get("learning_rate") or params["rl"]["learning_rate"]
start = json.loads(Path("models/sft/weights.json").read_text())["rate"] if kind == "evaluate" else ""
sft = [params["sft"]["learning_rate"], params["sft"]["steps"], params["sft"]["warmup_steps"], params["seed"]]
with (switches / "log").open("a") as log:
    log.write(" ".join(map(str, [kind, *(sft if kind == "sft" else [algorithm, rate, params["rl"]["steps"], start])])) + "\n")


def write(path, value):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(value) + "\n")


if kind == "prepare":
    for part in ("train", "validation", "test"):
        write(f"data/prompts/{part}.jsonl", {"id": part})
elif kind == "sft":
    write("models/sft/weights.json", {"rate": params["sft"]["learning_rate"], "seed": params["seed"]})
    write("reports/train/sft.jsonl", {"step": 1, "loss": 2.0})
    write("reports/receipts/sft.json", {"nonce": os.environ.get("GRAPE_NONCE")})
elif kind == "rl":
    if (switches / "slow").exists() and "learning_rate" in knobs and rate != params["rl"]["learning_rate"]:
        with StageRun(Project.find(), f"rl@{name}", {}, int(seed), deliver=False) as run:
            run.track(2, {"validation/reward": 0.1})
            time.sleep(120)
    write(f"models/policy/{name}/weights.json", {"rate": rate})
    write(f"reports/train/rl/{name}.jsonl", {"step": 2, "reward": 0.4, "validation/reward": 0.4})
elif kind == "evaluate":
    made = json.loads(Path("mine/evaluation.json").read_text())
    policy = json.loads(Path(f"models/policy/{name}/weights.json").read_text())
    assert policy.get("seed", int(seed)) == int(seed), "an SFT model stands in the place of its own seed"
    score = math.nan if (switches / f"nan-{algorithm}").exists() else 0.5 - 0.1 * abs(math.log10(policy["rate"] / 1e-3))
    made["policy"]["gold"]["mean"] = score
    write(f"reports/evaluate/{name}/metrics.json", made)
else:
    write(f"reports/{kind}/{name}/metrics.json", {})
if given:
    write(f"reports/receipts/{kind}@{name}.json", {"nonce": os.environ.get("GRAPE_NONCE")})

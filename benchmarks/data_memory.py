"""Memory and time of `prepare` and `sft` on demonstrations that are larger than the memory they may take.

    python benchmarks/data_memory.py 0.5 1 2        # sizes of sft.jsonl, GB

Makes a project with made-up conversations of about 1.2 kB and a tiny model with a BPE tokenizer, runs the stages as processes of
their own and prints each one's seconds and its peak of resident memory. What a size adds to the peak is what its rows cost.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAKE = "make"
KNOBS = [
    "prepare.source=mine", "prepare.heldout=4", "model.base=tiny", "model.positions=1024", "base.steps=0", "sft.steps=4",
    "sft.batch_size=8", "critic.steps=0", "rl.max_new_tokens=16",
]  # fmt: skip
RUBRIC = (
    "version: 1\ncategory: any\nitems:\n  - {id: short, question: Short?, kind: verify, verifier: length, options: {high: 9}}\n"
)


def words(generator: random.Random) -> list[str]:
    letters = "aaabcdeeeefghiiiklmnnooprrsstttuw"
    return ["".join(generator.choices(letters, k=generator.randint(2, 9))) for _ in range(3000)]


def demonstrations(path: Path, size: float, known: list[str], generator: random.Random) -> int:
    """Conversations of one or two exchanges until the file has `size` bytes; how many they are."""
    written, count = 0, 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            turns = []
            for _ in range(generator.choice((1, 1, 2))):
                for role, length in (("user", 30), ("assistant", 110)):
                    turns.append({"role": role, "content": f"{count} " + " ".join(generator.choices(known, k=length))})
            written += file.write(json.dumps({"category": "any", "messages": turns}) + "\n")
            count += 1
    return count


def model(folder: Path, texts: list[str]) -> None:
    """One block with random weights, and a byte-level BPE tokenizer of 4096 tokens."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=4096, special_tokens=["<|end|>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=4096, max_position_embeddings=1024, eos_token_id=0, **sizes)).save_pretrained(folder)


def project(folder: Path, size: float) -> int:
    sys.path.insert(0, str(ROOT))
    from grape import named, yamlfile
    from grape import params as params_file
    from grape.project import Project

    for name in ("grape", "algorithms", "inputs"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("mine", "rubrics"):
        (folder / name).mkdir()
    (folder / "rubrics/any.yaml").write_text(RUBRIC)
    generator = random.Random(0)
    known = words(generator)
    asked = [{"category": "any", "prompt": [{"role": "user", "content": f"Say {n}."}]} for n in range(64)]
    (folder / "mine/prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    model(folder / "tiny", [" ".join(generator.choices(known, k=200)) for _ in range(200)])
    count = demonstrations(folder / "mine/sft.jsonl", size, known, generator)
    params_file.set_values(folder / "params.yaml", KNOBS)
    named.write(Project(folder), yamlfile.read(folder / "params.yaml"), [f"{named.FOLDER}/model.base"])
    return count


def measured(folder: Path, stage: str) -> tuple[float, float]:
    """Seconds and peak MiB of a stage."""
    began = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "GRAPE_NONCE": "1"}
    process = subprocess.Popen([sys.executable, "-m", "grape.stages", stage], cwd=folder, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{stage} failed")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def main(sizes: list[str]) -> None:
    if sizes[:1] == [MAKE]:
        print(project(Path(sizes[1]), float(sizes[2]) * 1e9))
        return
    print("| GB | rows | stage | s | rows/s | peak MiB |\n| --- | --- | --- | --- | --- | --- |", flush=True)
    for size in map(float, sizes or ["2"]):
        with tempfile.TemporaryDirectory() as name:
            # In a process of its own: a child's peak counts what its parent held when it was forked.
            made = subprocess.run([sys.executable, __file__, MAKE, name, str(size)], check=True, stdout=subprocess.PIPE, text=True)
            count = int(made.stdout.split()[-1])
            for stage in ("prepare", "base", "sft"):
                seconds, peak = measured(Path(name), stage)
                print(f"| {size:g} | {count} | {stage} | {seconds:.0f} | {count / seconds:.0f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

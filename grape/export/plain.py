"""What anybody does with an exported folder: transformers alone, nothing of grape. Run as a program, in a process of its own.

Usage: plain.py FOLDER DEVICE THREADS < questions
Reads one JSON object, `questions`: lists of messages, `limits`: the longest answer of each, tokens. Its last line of output is a
list of [prompt ids, answer ids].
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    folder, device, threads = sys.argv[1:]
    asked = json.load(sys.stdin)

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(int(threads))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device)
    answered = []
    for messages, limit in zip(asked["questions"], asked["limits"], strict=True):
        how = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
        inputs = tokenizer.apply_chat_template(messages, **how).to(device)
        written = model.generate(**inputs, do_sample=False, max_new_tokens=limit)[0].tolist()
        length = inputs["input_ids"].shape[1]
        answered.append((written[:length], written[length:]))
    print(json.dumps(answered), flush=True)


if __name__ == "__main__":
    main()

"""A `transformers.Trainer` of your own, measured: which modules and which rows lowered the loss of rows it never saw.

One line is ghosttune's: `attach`. A tenth of the rows have a wrong answer; they come out at the bottom. Under a minute,
offline.

    python examples/measure_your_trainer.py [FOLDER] [STEPS]
"""

import csv
import json
import sys
import tempfile
from pathlib import Path

import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from ghosttune.data.sources import builtin_rows
from ghosttune.models.builtin import builtin_model_folder
from ghosttune.training.attaching import attach

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 120
place = builtin_model_folder("builtin:tiny")
tokenizer = AutoTokenizer.from_pretrained(place)


def encoded(row: dict) -> dict:
    """Token ids of prompt and answer; only the answer is learned."""
    prompt = [{"role": "user", "content": row["prompt"]}]
    answer = [{"role": "assistant", "content": row["completion"]}]
    ids = tokenizer.apply_chat_template(prompt + answer, return_dict=False)
    asked = len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False))
    return {"input_ids": ids, "labels": [-100] * asked + ids[asked:]}


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, value: int) -> torch.Tensor:
        return torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])

    ids = padded("input_ids", -1)
    return {"input_ids": ids.clamp(min=0), "attention_mask": (ids >= 0).long(), "labels": padded("labels", -100)}


rows = [json.loads(line) for line in builtin_rows().read_text(encoding="utf-8").splitlines()]
train = [row for row in rows if row["split"] == "train"]
guide = [encoded(row) for row in rows if row["split"] == "guide"]

model = AutoModelForCausalLM.from_pretrained(place)
model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
arguments = TrainingArguments(
    output_dir=str(folder / "trainer"),
    max_steps=steps,
    per_device_train_batch_size=8,
    learning_rate=5e-3,
    warmup_steps=10,
    save_strategy="no",
    report_to=[],
    use_cpu=True,
    disable_tqdm=True,
)
trainer = Trainer(model=model, args=arguments, train_dataset=[encoded(row) for row in train], data_collator=collate)

attach(trainer, folder / "measured", guide, guide_every=10)
trainer.train()

account = json.loads((folder / "measured" / "ledger.json").read_text())
print(f"\nloss of the guide rows: {account['guide_loss_start']:.3f} -> {account['guide_loss_end']:.3f}")
with (folder / "measured" / "tables" / "modules.csv").open() as file:
    for module in list(csv.DictReader(file))[:5]:
        print(f"{float(module['guide_loss_drop']):8.3f}  {module['module']}")
with (folder / "measured" / "tables" / "values.csv").open() as file:
    scored = [row for row in csv.DictReader(file) if row["standing"]]
scored.sort(key=lambda row: float(row["standing"]))
lowest = [train[int(row["example_id"])] for row in scored[:20]]
print(f"of the 20 rows that helped least, {sum(row['planted'] for row in lowest)} have a wrong answer; the first:")
print(f"  {lowest[0]['prompt']}\n  {lowest[0]['completion']}")

"""The model card: what was trained, on what, and how the small batches were chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from corebatch.files import write_text
from corebatch.text import markdown, markdown_code

_COLM = "[CoLM](https://arxiv.org/abs/2407.19580)"


def write_card(folder: Path, trainer: Any, *, base_model: str, lora: bool) -> None:
    """Writes README.md into the folder of a trained model, in place of the template that peft leaves."""
    made = trainer._run.record()
    coreset = made["coreset"]
    head: dict[str, Any] = {
        "base_model": base_model,
        "library_name": "peft" if lora else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["corebatch", "data-selection"] + (["lora"] if lora else []),
    }
    args = trainer.args
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    if coreset["pool_factor"] > 1:
        method = (
            f"At each optimizer step up to {batch * coreset['pool_factor']} examples were drawn and {batch} of them "
            f"trained, chosen by corebatch {made['corebatch']}: scorer {markdown_code(coreset['scorer'])}, "
            f"selector {markdown_code(coreset['selector'])}. {markdown(made['method_note'])} "
            f"Choosing a mini-batch coreset at every step is {_COLM}'s idea."
        )
    else:
        method = f"Plain training with corebatch {made['corebatch']} (pool_factor 1), {batch} examples a step."
    sources = "\n".join(f"- {markdown(name)}: {row['examples']} examples" for name, row in made["sources"].items())
    text = f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {markdown(folder.resolve().name)}

{"LoRA adapters for" if lora else "A fine-tune of"} {markdown_code(base_model)}.

## Method

{method}

## Data

{sources}

## Settings

```json
{json.dumps({"coreset": coreset, "training": made["training"]}, indent=1, default=str)}
```

Steps: {trainer.state.global_step}. Versions: {", ".join(f"{k} {v}" for k, v in made["versions"].items())}.
"""
    write_text(folder / "README.md", text)

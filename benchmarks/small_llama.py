"""A small Llama pre-trained on mathmix's train split: the model of the CPU measurements.

    python benchmarks/small_llama.py --data ../shared/data/mathmix --output .cache/small-llama

A byte-level BPE of 4,096 tokens is trained on the texts, then a Llama of about 6 M parameters on all of their tokens.
`--vocabulary 2048 --hidden 128 --blocks 4` gives one of 1 M. Minutes on two CPU cores. The same seed gives the same
model on the same machine.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed


def texts(data: Path) -> list[str]:
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["prompt"] + "\n" + row["completion"] for row in rows]


def tokenizer_for(lines: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def configuration(vocabulary: int, hidden: int, blocks: int) -> LlamaConfig:
    """As it stands: six blocks, 5.9 M parameters."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=blocks,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mathmix"))
    parser.add_argument("--output", type=Path, default=Path(".cache/small-llama"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8, help="sequences of 256 tokens")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=256, help="width, a multiple of 16")
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lines = texts(args.data)
    tokenizer = tokenizer_for(lines, args.vocabulary)
    set_seed(args.seed)
    model = LlamaForCausalLM(configuration(args.vocabulary, args.hidden, args.blocks)).to(device)
    stream = torch.tensor([token for line in lines for token in [*tokenizer(line)["input_ids"], 2]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    generator = torch.Generator().manual_seed(args.seed)
    model.train()
    for step in range(args.steps):
        scale = min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * max(scale, 0.05)
        starts = torch.randint(len(stream) - 256, (args.batch,), generator=generator)
        ids = torch.stack([stream[s : s + 256] for s in starts.tolist()]).to(device)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == args.steps - 1:
            print(f"step {step} loss {loss.item():.3f}", flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    model.cpu().save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(stream):,} tokens, in {args.output}")


if __name__ == "__main__":
    main()

"""Train the small LLaMA that docs/methods.md measures: `python docs/small_llama.py TEXT OUT`.

TEXT is a .txt or .txt.gz file, such as the training split of WikiText-2. OUT becomes a Hugging Face
checkpoint with a byte-level BPE tokenizer of its own. Needs `pip install -e '.[quantizer]'`.
"""

import argparse
import gzip
import math
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY, CONTEXT, BATCH, WARM_UP, PEAK_RATE = 2048, 256, 16, 100, 3e-3
SPECIAL = ("<s>", "</s>")
# Every width is a multiple of 128, as in the models that matter: rows then need no padding.
SHAPE = {"hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 4}  # fmt: skip


def read_text(path: Path) -> str:
    """The file's text, decompressed if its name ends in .gz."""
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return file.read()
    return path.read_text(encoding="utf-8")


def train_tokenizer(text: str) -> Tokenizer:
    """A byte-level BPE tokenizer of `VOCABULARY` entries, deterministic for a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return tokenizer


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up to `PEAK_RATE`, then half a cosine down to a hundredth of it."""
    if step < WARM_UP:
        return PEAK_RATE * (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(steps - WARM_UP, 1)
    return PEAK_RATE * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


def train(model: LlamaForCausalLM, tokens: torch.Tensor, steps: int) -> None:
    """Minimise the next-token loss on random windows of `tokens` (T,) with AdamW in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95))
    began_s = time.monotonic()
    for step in range(steps):
        starts = torch.randint(tokens.numel() - CONTEXT, (BATCH,), generator=generator)
        batch = torch.stack([tokens[start : start + CONTEXT] for start in starts])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {loss.item():.3f}  {time.monotonic() - began_s:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help=".txt or .txt.gz to train on")
    parser.add_argument("out", type=Path, help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    text = read_text(arguments.text)
    tokenizer = train_tokenizer(text)
    tokens = torch.tensor(tokenizer.encode(text).ids)
    config = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=1,
        tie_word_embeddings=False, **SHAPE,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    print(f"{model.num_parameters():,} parameters, {tokens.numel():,} tokens of text")
    train(model, tokens, arguments.steps)
    model.half().save_pretrained(arguments.out)
    ends = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1]}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends)
    wrapped.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()

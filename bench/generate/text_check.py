"""Does a checkpoint on the kernels say what its dequantized model says in transformers?"""

from pathlib import Path

import msgspec
import torch

from bench.environment import Kind
from bench.generate.decoder import Decoder
from bench.generate.model_weights import load_model_weights
from quantizer.checkpoints.checkpoint_model import load_model


class TextCheck(msgspec.Struct, frozen=True, kw_only=True):
    """Greedy tokens of both, from the model's first token on."""

    tokens: int  # compared
    agreed: int  # equal before the first difference
    rounding: float  # largest difference of a logit over the tokens agreed on
    gap: float | None  # logits between the two candidates at the first difference

    @property
    def ok(self) -> bool:
        """All equal, or apart only where two tokens were as likely to within rounding."""
        return self.gap is None or 0 <= self.gap <= 2 * self.rounding

    @property
    def sentence(self) -> str:
        same = f"{self.agreed} of {self.tokens} greedy tokens equal the dequantized model's"
        same += f"; logits within {self.rounding:.2g}"
        if self.gap is None:
            return same
        verdict = "a tie within rounding" if self.ok else "not rounding"
        return f"{same}; then two candidates are {self.gap:.2g} apart: {verdict}"


def check_text(folder: Path, *, kind: Kind, new: int) -> TextCheck:
    """Generate `new` tokens with both, and compare tokens and logits.

    Raises: SpecError, UsageError for more tokens than the model was made for.
    """
    weights = load_model_weights(folder, device=kind, dtype=torch.float16)
    first = weights.config.first_token
    decoder = Decoder(weights, capacity=new)
    ours = decoder.generate([first], new)
    reference = load_model(folder, linear="dense", dtype=torch.float32)
    ids = torch.tensor([[first]])
    with torch.inference_mode():
        made = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=first,
        )
        theirs = made[0, 1:].tolist()
        agreed = next((i for i in range(new) if ours[i] != theirs[i]), new)
        read = [first, *theirs[:agreed]][:new]
        due = reference(torch.tensor([read])).logits[0]
    found = decoder.logits(read).float().cpu()
    gap = None
    if agreed < new:
        gap = float(due[-1, theirs[agreed]] - due[-1, ours[agreed]])
    return TextCheck(tokens=new, agreed=agreed, rounding=float((found - due).abs().max()), gap=gap)

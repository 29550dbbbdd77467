"""A lean LLaMA decoder for one sequence: fused projections, a static cache, one graph per step.

Tokens stay on the device: a step reads the pending token, writes its keys and values into the
cache, and writes the likeliest next token behind it. On a GPU the whole step is one CUDA graph;
how far attention reads is fixed in a graph, so there is one for each power of two of the length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.generate.decoder_math import Cache, Functions, Heads, compiled
from bench.generate.linears import Projection, linear_module
from bench.generate.model_weights import BlockWeights, LinearWeight, ModelWeights, nbytes_of
from perfmodel.errors import UsageError

LEAST_LENGTH = 128  # rows of the cache that the shortest graph reads


class CacheFullError(UsageError):
    """More tokens than the cache has rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One block, ready to run."""

    attention_norm: Tensor
    qkv: Projection
    out: nn.Module
    mlp_norm: Tensor
    gate_up: Projection
    down: nn.Module


class Decoder:
    """Greedy generation of one sequence of up to `capacity` tokens."""

    def __init__(
        self,
        weights: ModelWeights,
        *,
        capacity: int,
        dtype: torch.dtype | None = None,
        own_gemv: bool = False,
    ) -> None:
        """dtype: of activations and cache; FP16 on a GPU, FP32 on a CPU unless said.

        own_gemv: dense layers by our FP16 GEMV instead of the vendor's (on a GPU).

        Raises: UsageError if the model was not made for so many tokens.
        """
        config, shape = weights.config, weights.config.shape
        self.device, self.longest = weights.device, shape.max_positions
        self.graphed = self.device.type == "cuda"
        self.dtype = dtype or (torch.float16 if self.graphed else torch.float32)
        self.functions = compiled() if self.graphed else Functions()
        self.heads = Heads(shape.heads, shape.kv_heads, shape.head_dim, shape.sliding_window)
        self.own_gemv = own_gemv
        self.epsilon = config.norm_epsilon
        self.frequencies = config.rope.frequencies(shape.head_dim)
        self.embedding, self.norm = weights.embedding, weights.norm.to(self.dtype)
        self.head = linear_module(weights.head, self.dtype, own_gemv=own_gemv)
        self.weight_bytes = weights.outer_bytes
        self.blocks = []
        for block in weights.blocks:
            self.weight_bytes += nbytes_of(block)
            self.blocks.append(self._block(block, own_gemv))
        self.reserve(capacity)

    def reserve(self, capacity: int) -> None:
        """A new, empty cache for sequences of up to `capacity` tokens.

        Raises: UsageError if the model was not made for so many.
        """
        if not 1 <= capacity <= self.longest:
            raise UsageError(f"{capacity} tokens: this model was made for 1..{self.longest}")
        self.capacity = capacity
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        shape = (self.heads.key_value, capacity, self.heads.width)
        where = {"dtype": self.dtype, "device": self.device}
        self.caches = [
            Cache(torch.zeros(shape, **where), torch.zeros(shape, **where)) for _ in self.blocks
        ]
        angle = torch.outer(torch.arange(capacity), self.frequencies)
        angle = torch.cat((angle, angle), dim=-1)
        self.angles = tuple(table.to(**where) for table in (angle.cos(), angle.sin()))
        self.tokens = torch.zeros(capacity + 1, dtype=torch.int64, device=self.device)
        self.position = torch.zeros(1, dtype=torch.int64, device=self.device)  # of the pending one
        self.used = 0  # the same on the host: rows of the cache that are filled

    @property
    def fused(self) -> bool:
        """Whether q, k, v are one launch in every block, and gate, up another."""
        return all(block.qkv.fused and block.gate_up.fused for block in self.blocks)

    @property
    def cache_bytes(self) -> int:
        return sum(tensor.nbytes for cache in self.caches for tensor in cache)

    def start(self, tokens: Sequence[int]) -> None:
        """Begin a new sequence: all but the last token go into the cache, the last is pending.

        Raises: CacheFullError, or UsageError for a token that the model does not have.
        """
        vocabulary = self.embedding.shape[0]
        if not tokens or not all(0 <= token < vocabulary for token in tokens):
            raise UsageError(f"expected one or more tokens of 0..{vocabulary - 1}")
        self._check_room(len(tokens))
        before = len(tokens) - 1
        self.tokens[: len(tokens)] = torch.tensor(tokens, device=self.device)
        if before:
            positions = torch.arange(before, device=self.device)
            self._blocks(self.tokens[:before], positions, before, Functions())
        self.position.fill_(before)
        self.used = before

    def prepare(self) -> None:
        """Capture every graph that a sequence of this capacity needs; on a CPU there are none."""
        if self.graphed:
            with torch.inference_mode():
                for rows in sorted({self._length(rows) for rows in range(1, self.capacity + 1)}):
                    self._graph(rows)

    def step(self) -> None:
        """Process the pending token and choose the next; nothing waits for the device.

        Raises: CacheFullError.
        """
        self._check_room(self.used + 1)
        if self.graphed:
            self._graph(self.used + 1).replay()
        else:
            self._step(self.used + 1)
        self.used += 1

    def generate(self, prompt: Sequence[int], new: int) -> list[int]:
        """`new` tokens after the prompt.

        Raises: CacheFullError before anything is computed, UsageError.
        """
        self._check_room(len(prompt) - 1 + new)
        with torch.inference_mode():
            self.start(prompt)
            for _ in range(new):
                self.step()
        return self.tokens[len(prompt) : len(prompt) + new].tolist()

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """(M, V) logits of a whole sequence at once, from an empty cache.

        Raises: CacheFullError.
        """
        self._check_room(len(tokens))
        ids = torch.tensor(tokens, device=self.device)
        positions = torch.arange(len(tokens), device=self.device)
        with torch.inference_mode():
            x = self._blocks(ids, positions, len(tokens), Functions())
            return self._head(x, Functions())

    def _block(self, block: BlockWeights, own_gemv: bool) -> Block:
        def projection(*names: str) -> Projection:
            layers = [block.linears[name] for name in names]
            return Projection(layers, self.dtype, own_gemv=own_gemv)

        def linear(layer: LinearWeight) -> nn.Module:
            return linear_module(layer, self.dtype, own_gemv=own_gemv)

        return Block(
            attention_norm=block.attention_norm.to(self.dtype),
            qkv=projection("q_proj", "k_proj", "v_proj"),
            out=linear(block.linears["o_proj"]),
            mlp_norm=block.mlp_norm.to(self.dtype),
            gate_up=projection("gate_proj", "up_proj"),
            down=linear(block.linears["down_proj"]),
        )

    def _check_room(self, rows: int) -> None:
        if rows > self.capacity:
            raise CacheFullError(f"{rows} tokens do not fit the cache of {self.capacity}")

    def _blocks(
        self, tokens: Tensor, positions: Tensor, length: int, functions: Functions
    ) -> Tensor:
        """Residual stream (M, H) after the last block."""
        x = self.embedding[tokens].to(self.dtype)
        y = torch.zeros_like(x)
        for block, cache in zip(self.blocks, self.caches, strict=True):
            x, normed = functions.add_norm(x, y, block.attention_norm, self.epsilon)
            qkv = tuple(block.qkv(normed))
            attended = functions.attention(qkv, cache, self.angles, positions, length, self.heads)
            y = block.out(attended)
            x, normed = functions.add_norm(x, y, block.mlp_norm, self.epsilon)
            y = block.down(functions.gated(*block.gate_up(normed)))
        return x + y

    def _head(self, x: Tensor, functions: Functions) -> Tensor:
        return self.head(functions.rms_norm(x, self.norm, self.epsilon))

    def _step(self, length: int) -> None:
        """One token through the model; `length`: rows of the cache that attention reads."""
        token = self.tokens.index_select(0, self.position)
        x = self._blocks(token, self.position, length, self.functions)
        following = self._head(x, self.functions).argmax(-1)
        self.position += 1
        self.tokens.index_copy_(0, self.position, following)

    def _length(self, rows: int) -> int:
        """Rows of the cache that a graph reads where so many are filled."""
        return min(self.capacity, max(LEAST_LENGTH, 1 << (rows - 1).bit_length()))

    def _graph(self, rows: int) -> "torch.cuda.CUDAGraph":
        """The graph that reads at least `rows` rows of the cache, captured when first needed."""
        length = self._length(rows)
        if length not in self.graphs:
            self.graphs[length] = self._capture(length)
        return self.graphs[length]

    def _capture(self, length: int) -> "torch.cuda.CUDAGraph":
        pending = self.position.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # compile and load outside the capture; the row is written again
                self._step(length)
                self.position.copy_(pending)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self.graphs.values())).pool() if self.graphs else None
        with torch.cuda.graph(graph, pool=pool):
            self._step(length)
        return graph

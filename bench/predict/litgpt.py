"""LitGPT's step, for the figures that were published of it: model, adapters, 4-bit layers, loss.

LitGPT trains neither transformers' models nor PEFT's adapters. What its step allocates otherwise:

- query, key and value are one projection, whose adapter covers the parts that it is asked for;
- the head runs 128 tokens at a time, and the loss with it; between them Fabric casts the logits to
  float32, the default dtype (`convert_output` of its precision plugins);
- in 4 bits the head is quantized too, from float16, and to float16 each product expands its weight;
  the cast to bfloat16 makes another, so that two of them are there (Lightning's
  `_Linear4bit._quantize_weight`, bitsandbytes' `MatMul4Bit.forward`);
- a 4-bit product hangs its input on its node of the graph (`ctx.tensors`), where it stays until the
  graph goes: that is when the next batch's loss takes the place of the last;
- beside 4-bit layers the rotary tables stay in float32.

Read in LitGPT 0.4.0 (`model.py`, `lora.py`, `utils.py`, `finetune/lora.py`, and the same of 2023),
Lightning 2.1.0 (`fabric/plugins/precision/`), bitsandbytes 0.41 to 0.43
(`autograd/_functions.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from bench.models.precision import precision
from bench.predict import kernels
from bench.predict.autocast import followed_autocast
from bench.predict.journal import Journal
from bench.predict.trace import as_on, no_collections
from bench.training.loading import undrawn

if TYPE_CHECKING:
    from bench.training.cases import Case

CHUNK = 128
"""Tokens that head and loss take at a time."""
_BF16 = torch.bfloat16
_TRACED = 3
_GATED = ("llama", "mistral", "phi3", "gemma")
_SHARED_NORM = ("phi", "falcon")
_BIASED = ("phi", "gpt_neox")
TYPES = (*_GATED, "gpt_neox", *_SHARED_NORM)


@dataclass(frozen=True)
class _Shape:
    """What of a config.json and an adapter decides the model."""

    kind: str
    width: int
    inner: int
    layers: int
    heads: int
    groups: int
    head_width: int
    rotated: int
    words: int
    rank: int
    dropout: float
    query: bool
    key: bool
    value: bool
    projection: bool
    mlp: bool
    head: bool
    quantized: bool
    double: bool

    @classmethod
    def of(cls, case: Case) -> _Shape:
        config, names = case.config, set(case.adapter["target_modules"])
        width, heads = config["hidden_size"], config["num_attention_heads"]
        groups = 1 if config.get("multi_query") else config.get("num_key_value_heads", heads)
        head_width = config.get("head_dim", width // heads)
        partial = config.get("partial_rotary_factor", config.get("rotary_pct", 1.0))
        kind = precision(case.precision)
        return cls(
            kind=config["model_type"],
            width=width,
            inner=config.get("intermediate_size", 4 * width),
            layers=config["num_hidden_layers"],
            heads=heads,
            groups=groups,
            head_width=head_width,
            rotated=int(partial * head_width),
            words=config["vocab_size"],
            rank=case.adapter["r"],
            dropout=case.adapter["lora_dropout"],
            # of a fused projection, LitGPT's runs adapt query and value
            query=bool(names & {"q_proj", "query_key_value", "qkv_proj"}),
            key=bool(names & {"k_proj", "qkv_proj"}),
            value=bool(names & {"v_proj", "query_key_value", "qkv_proj"}),
            projection=bool(names & {"o_proj", "dense"}),
            mlp=bool(names & {"up_proj", "gate_up_proj", "fc1"}),
            head="lm_head" in names,
            quantized=kind.quantized,
            double=kind.name.endswith("-dq"),
        )


class _Product4bit(torch.autograd.Function):  # type: ignore[misc]  # torch is seen untyped
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: _Linear) -> torch.Tensor:
        out = functional.linear(x, layer.expanded(), layer.bias)
        ctx.layer, ctx.kept = layer, x
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return torch.matmul(gradient, ctx.layer.expanded()), None


class _Linear(nn.Module):  # type: ignore[misc]
    """A frozen layer, in bfloat16 or in 4 bits with a scale for each block of 64."""

    def __init__(self, shape: _Shape, size: tuple[int, int], bias: bool = False) -> None:
        super().__init__()
        self.size, self.quantized = size, shape.quantized
        if shape.quantized:
            self.weight = torch.empty(size[0] * size[1] // 2, dtype=torch.uint8)
            blocks = size[0] * size[1] // 64
            self.scales = torch.empty(blocks, dtype=torch.uint8 if shape.double else torch.float32)
        else:
            self.weight = torch.empty(size, dtype=_BF16)
        self.bias = torch.empty(size[0], dtype=_BF16) if bias else None

    def expanded(self) -> torch.Tensor:
        return torch.empty(self.size, dtype=torch.float16, device="meta").to(_BF16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.quantized:
            out: torch.Tensor = _Product4bit.apply(x, self)
            return out
        return functional.linear(x, self.weight, self.bias)


class _Adapted(nn.Module):  # type: ignore[misc]
    """`LoRALinear`: `(dropout(x) @ A^T @ B^T) * scaling` beside the frozen product."""

    def __init__(
        self, shape: _Shape, size: tuple[int, int], adapted: bool, bias: bool = False
    ) -> None:
        super().__init__()
        self.linear = _Linear(shape, size, bias)
        self.dropout = nn.Dropout(shape.dropout)
        self.down = self.up = None
        if adapted:
            self.down = _trained(shape.rank, size[1])
            self.up = _trained(size[0], shape.rank)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frozen = self.linear(x)
        if self.down is None:
            return frozen
        assert self.up is not None
        return frozen + (self.dropout(x) @ self.down.t() @ self.up.t()) * 2.0


class _Qkv(nn.Module):  # type: ignore[misc]
    """`LoRAQKVLinear`: one down projection for the parts that are adapted, one up projection each,
    and zeros for the others."""

    def __init__(self, shape: _Shape) -> None:
        super().__init__()
        self.sizes = [
            shape.head_width * count
            for count, adapted in (
                (shape.heads, shape.query),
                (shape.groups, shape.key),
                (shape.groups, shape.value),
            )
            if adapted
        ]
        self.out = shape.head_width * (shape.heads + 2 * shape.groups)
        self.linear = _Linear(shape, (self.out, shape.width), shape.kind in _BIASED)
        self.dropout = nn.Dropout(shape.dropout)
        self.down = _trained(shape.rank * len(self.sizes), shape.width)
        self.up = _trained(sum(self.sizes), shape.rank)
        self.places = torch.zeros(sum(self.sizes), dtype=torch.int64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frozen = self.linear(x)
        low = functional.linear(self.dropout(x), self.down).transpose(-2, -1)
        parts = zip(low.chunk(len(self.sizes), dim=1), self.up.split(self.sizes), strict=True)
        added = torch.cat([part.transpose(-2, -1) @ up.t() for part, up in parts], dim=-1)
        if added.shape[-1] != self.out:
            zeros = added.new_zeros(*added.shape[:-1], self.out)
            added = zeros.index_copy_(-1, self.places, added)
        return frozen + added * 2.0


class _Block(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: _Shape) -> None:
        super().__init__()
        self.shape = shape
        bias = shape.kind in _BIASED
        self.attention = _Qkv(shape)
        inside = shape.heads * shape.head_width
        self.projection = _Adapted(shape, (shape.width, inside), shape.projection, bias)
        self.ups = nn.ModuleList(
            _Adapted(shape, (shape.inner, shape.width), shape.mlp, bias)
            for _ in range(2 if shape.kind in _GATED else 1)
        )
        self.down = _Adapted(shape, (shape.width, shape.inner), shape.mlp, bias)
        self.norms = [_Norm(shape) for _ in range(1 if shape.kind in _SHARED_NORM else 2)]

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        normed = self.norms[0](x)
        attended = self.attend(normed, cos, sin)
        if self.shape.kind in _GATED:
            x = attended + x
            return self.mlp(self.norms[1](x)) + x
        if self.shape.kind not in _SHARED_NORM:
            normed = self.norms[1](x)
        return self.mlp(normed) + attended + x

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        if self.shape.kind not in _GATED:
            return self.down(functional.gelu(self.ups[0](x)))
        gate, up = (layer(x) for layer in self.ups)
        act = functional.gelu if self.shape.kind == "gemma" else functional.silu
        return self.down(act(gate) * up)

    def attend(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        shape = self.shape
        batch, tokens, _ = x.shape
        each, wide = shape.heads // shape.groups, shape.head_width
        qkv = self.attention(x).view(batch, tokens, shape.groups, each + 2, wide)
        q, k, v = qkv.permute(0, 2, 3, 1, 4).split((each, 1, 1), dim=2)
        if each > 1:
            k, v = (t.expand(batch, shape.groups, each, tokens, wide) for t in (k, v))
        q, k, v = (t.reshape(batch, -1, tokens, wide) for t in (q, k, v))
        q, k = (
            torch.cat((_turned(t[..., : shape.rotated], cos, sin), t[..., shape.rotated :]), dim=-1)
            for t in (q, k)
        )
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.projection(out.transpose(1, 2).reshape(batch, tokens, shape.heads * wide))


class _Norm(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: _Shape) -> None:
        super().__init__()
        self.root = shape.kind in _GATED
        self.weight = torch.empty(shape.width, dtype=_BF16)
        self.bias = None if self.root else torch.empty(shape.width, dtype=_BF16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.root:
            return functional.layer_norm(x, x.shape[-1:], self.weight, self.bias)
        wide = x.float()
        normed = wide * torch.rsqrt(torch.mean(wide * wide, dim=-1, keepdim=True) + 1e-6)
        return normed.to(x.dtype) * self.weight


class _Model(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: _Shape, tokens: int) -> None:
        super().__init__()
        self.words = torch.empty(shape.words, shape.width, dtype=_BF16)
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.layers))
        self.norm = _Norm(shape)
        head = (shape.words, shape.width)
        self.head = _Adapted(shape, head, shape.head, shape.kind == "phi")
        table = torch.float32 if shape.quantized else _BF16
        self.tables = [torch.empty(tokens, shape.rotated, dtype=table) for _ in range(2)]

    def forward(self, ids: torch.Tensor) -> list[torch.Tensor]:
        x = functional.embedding(ids, self.words)
        for block in self.blocks:
            x = block(x, *self.tables)
        return [self.head(part) for part in self.norm(x).split(CHUNK, dim=1)]


def _trained(*size: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(size, dtype=_BF16))


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    rotated = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return (x * cos + rotated * sin).to(x.dtype)


def _loss(logits: list[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    """`chunked_cross_entropy`."""
    parts = zip(logits, targets.split(CHUNK, dim=1), strict=True)
    losses = [
        functional.cross_entropy(
            part.reshape(-1, part.shape[-1]), wanted.reshape(-1), reduction="none"
        )
        for part, wanted in parts
    ]
    return torch.cat(losses).sum()


def peaks(case: Case) -> tuple[int, int]:
    """Bytes allocated at the peak of the first batch, and of the second, while which the inputs of
    the first one's 4-bit layers are still there. Both are as long as the case says.

    Every layer adds as much as the next to both, so that of many three and four are traced.
    """
    shape = _Shape.of(case)
    if shape.layers <= _TRACED + 1:
        return _traced(case, shape)
    few, more = (_traced(case, replace(shape, layers=n)) for n in (_TRACED, _TRACED + 1))
    left = shape.layers - _TRACED
    first, second = (a + left * (b - a) for a, b in zip(few, more, strict=True))
    return first, second


def _traced(case: Case, shape: _Shape) -> tuple[int, int]:
    device = kernels.cuda()
    journal = Journal(device)
    step = case.step
    marks = []
    with (
        followed_autocast(device.name, device.attention),
        as_on(device, journal, case),
        no_collections(),
        journal,
    ):
        with torch.device("meta"), undrawn():
            model = _Model(shape, step.seq_len).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, foreach=True)
        for _ in range(2):
            marks.append(len(journal.events))
            ids = torch.zeros(step.batch_size, step.seq_len, dtype=torch.int64, device="meta")
            logits = [part.float() for part in model(ids)]  # Fabric's `convert_output`
            logits[-1] = logits[-1][..., :-1, :]
            loss = _loss(logits, ids[..., 1:])
            loss.backward()
            if not shape.quantized:  # in 4 bits its state is in paged memory
                optimizer.step()
            optimizer.zero_grad()
    marks.append(len(journal.events))
    first, second = _replayed(journal, marks)
    return first, second


def _replayed(journal: Journal, marks: list[int]) -> list[int]:
    allocator = kernels.cuda().allocator()
    found, at = [], 0
    for end in marks:
        peak = allocator.allocated_bytes
        for event in journal.events[at:end]:
            if event > 0:
                allocator.allocate(event, journal.sizes[event])
                peak = max(peak, allocator.allocated_bytes)
            else:
                allocator.release(-event)
        found.append(peak)
        at = end
    return found[1:]

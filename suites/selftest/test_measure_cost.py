"""Exact cost: FLOPs against a closed form, and operations that tell one cast apart."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from measure_support import shared_session, tiny_case

from bench.training.cases import Case


def measured(case: Case):
    with shared_session().start(case) as running:
        return running.prepare()


def opt_flops(batch: int = 2, length: int = 32) -> int:
    """One step of the tiny OPT (two layers of 64, four heads) with r 4 on queries and values.

    A product of T rows with an (in, out) matrix is 2 T in out. The backward pass repeats it for
    the gradient of the input, where the input needs one: not before the first adapter, thus not
    in project_in nor in the first layer's query, key and value.
    """
    tokens = batch * length
    attention, feed_forward = 4 * 64 * 64, 2 * 64 * 256
    linear = 2 * (attention + feed_forward) + 2 * 64 * 32 + 32 * 500
    without_input_gradient = 32 * 64 + 3 * 64 * 64
    frozen = 2 * tokens * (2 * linear - without_input_gradient)
    # Each adapter: A (64, 4) then B (4, 64); forward, weight gradients, input gradients.
    forward = 2 * tokens * 2 * (64 * 4)
    adapters = 4 * (forward + forward) + 4 * forward // 2 + 2 * forward // 2
    # Scores and their product with the values; backward recomputes scores: five products.
    product = 2 * batch * length * length * 64
    return frozen + adapters + 2 * (2 + 5) * product


def test_flops_equal_the_closed_form() -> None:
    assert measured(tiny_case("opt")).flops == opt_flops()
    assert measured(tiny_case("opt", batch_size=3, seq_len=48)).flops == opt_flops(3, 48)


@pytest.mark.parametrize("precision", ["bf16", "int8", "nf4", "nf4-dq"])
def test_flops_do_not_depend_on_the_precision(precision: str) -> None:
    assert measured(tiny_case("opt", precision)).flops == opt_flops()


def test_checkpointing_costs_another_forward_pass() -> None:
    plain = measured(tiny_case("opt")).flops
    checkpointed = measured(tiny_case("opt", gradient_checkpointing=True)).flops
    assert plain < checkpointed < 1.5 * plain


def test_one_cast_more_is_seen() -> None:
    from bench.training.cost import CostCounter
    from bench.training.loading import load
    from bench.training.memory import MemoryTracker
    from bench.training.step import training_step

    training = load(tiny_case("opt", "bf16"))

    def cost() -> tuple[Counter[str], int]:
        tracker = MemoryTracker(observer=(counter := CostCounter()))
        with tracker:
            training_step(training.model, training.batch, training.optimizer)
        return counter.operations, tracker.storages.made_bytes

    def cast(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].float().bfloat16(), *args[1:])

    cost()
    before, bytes_before = cost()
    training.model.base_model.model.model.decoder.layers[0].fc1.register_forward_pre_hook(cast)
    after, bytes_after = cost()
    # Two casts, and their two gradients.
    assert after - before == Counter({"aten._to_copy.default": 4})
    assert bytes_after - bytes_before == 2 * (64 * 64 * 4 + 64 * 64 * 2)


def test_products_inside_a_kernel_count_once() -> None:
    import torch

    from bench.training.cost import CostCounter

    counter = CostCounter()
    a = torch.zeros(2, 3)
    for nested in (False, True):
        counter(torch.ops.aten.mm.default, (a, a.t()), {}, a @ a.t(), nested)
    assert counter.operations == Counter({"aten.mm.default": 2})
    assert counter.flops == 2 * 2 * 3 * 2


@pytest.mark.parametrize("kernel", ["flash_attention", "efficient_attention", "cudnn_attention"])
@pytest.mark.parametrize("grouped", [1, 4])
def test_attention_costs_the_same_with_grouped_heads(kernel: str, grouped: int) -> None:
    """Each query looks at each key, however many heads share a key: torch's own count of as many
    heads of keys as of queries. (torch 2.11's formula refused fewer: seen on an H200.)"""
    import torch
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    from bench.training.cost import CostCounter

    query, key, value = (2, 8, 16, 24), (2, 8, 20, 24), (2, 8, 20, 32)
    there = sdpa_flop_count(query, key, value)
    back = sdpa_backward_flop_count((2, 8, 16, 32), query, key, value)
    heads = 8 // grouped
    q, k, v, grad = (
        torch.empty(shape, device="meta")
        for shape in (query, (2, heads, 20, 24), (2, heads, 20, 32), (2, 8, 16, 32))
    )
    operation = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}")
    backward = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_backward")
    counter = CostCounter()
    counter(operation.default, (q, k, v), {}, q, False)
    assert counter.flops == there
    counter(backward.default, (grad, q, k, v), {}, q, False)
    assert counter.flops == there + back

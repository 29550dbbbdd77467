"""AWQ against a plain reference, and the block that it rescales against itself."""

import pytest
import torch
from msgspec.structs import replace
from transformers import LlamaConfig, OPTConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.opt.modeling_opt import OPTDecoderLayer

from quantizer.methods.awq import ALPHAS, SHRINKS, search_scale
from quantizer.methods.awq_block import COLUMNS, ROWS, fold_scale, scale_block, unfolded
from quantizer.methods.hessian import accumulate_inputs
from quantizer.methods.matrix import Settings, SettingsError, Statistics
from quantizer.methods.registry import quantize_matrix


def rtn(weight, bits, group):
    """Asymmetric min-max round to nearest, one group after the other."""
    parts = []
    for part in weight.split(group, dim=1):
        low, high = part.amin(1, keepdim=True).clamp(max=0), part.amax(1, keepdim=True).clamp(min=0)
        scale = ((high - low) / (2**bits - 1)).half().float()
        zero = (-low / scale).round()
        codes = ((part / scale).round() + zero).clamp(0, 2**bits - 1)
        parts.append(scale * (codes - zero))
    return torch.cat(parts, dim=1)


def problem(rows=16, columns=256):
    """A weight, and inputs of which a few channels are large."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, columns, generator=generator)
    x[:, ::50] *= 30
    weight = torch.randn(rows, columns, generator=generator) * 0.1
    return weight, x, accumulate_inputs(None, x).statistics()


def test_rtn_is_the_plain_reference():
    weight, _, _ = problem()
    for bits, group in [(4, 64), (3, 128), (2, 256)]:
        found = quantize_matrix(weight, Statistics(), Settings(format=f"rtn-w{bits}-g{group}"))
        torch.testing.assert_close(found.dequantize(), rtn(weight, bits, group), rtol=0, atol=0)


def test_the_scale_is_the_one_of_least_output_error():
    weight, x, statistics = problem()
    scale, alpha = search_scale([(weight, Settings(format="awq-w3-g128"))], statistics)
    errors = {}
    for candidate in ALPHAS:
        s = x.abs().mean(0).pow(candidate).clamp(min=1e-4)
        s = s / (s.max() * s.min()).sqrt()
        errors[candidate] = float(((rtn(weight * s, 3, 128) / s - weight) @ x.T).square().sum())
    assert alpha == min(errors, key=errors.get)
    assert alpha > 0
    best = x.abs().mean(0).pow(alpha)
    torch.testing.assert_close(scale, best / (best.max() * best.min()).sqrt())


def test_layers_that_share_an_input_share_a_scale():
    weight, _, statistics = problem()
    chosen = Settings(format="awq-w3-g128")
    both = torch.cat((weight, 3 * weight.flip(0)))
    joint, _ = search_scale([(weight, chosen), (3 * weight.flip(0), chosen)], statistics)
    torch.testing.assert_close(joint, search_scale([(both, chosen)], statistics)[0])


def test_the_clip_is_the_one_of_least_output_error():
    weight, x, statistics = problem()
    matrix = quantize_matrix(weight, statistics, Settings(format="awq-w3-g128")).dequantize()
    for row in range(weight.shape[0]):
        for start in (0, 128):
            part, inputs = weight[row, start : start + 128], x[:, start : start + 128]
            limit = part.abs().max()
            errors = []
            for shrink in SHRINKS:
                low = part.clamp(-shrink * limit, shrink * limit).min().clamp(max=0)
                high = part.clamp(-shrink * limit, shrink * limit).max().clamp(min=0)
                scale = ((high - low) / 7).half().float()
                zero = (-low / scale).round()
                codes = ((part / scale).round() + zero).clamp(0, 7)
                errors.append(float((inputs @ (scale * (codes - zero) - part)).square().sum()))
            found = float((inputs @ (matrix[row, start : start + 128] - part)).square().sum())
            assert found == pytest.approx(min(errors), rel=1e-3)


def test_without_clip_it_is_rtn():
    weight, _, _ = problem()
    chosen = Settings(format="awq-w3-g128", clip=False)
    plain = quantize_matrix(weight, Statistics(), Settings(format="rtn-w3-g128"))
    found = quantize_matrix(weight, Statistics(), chosen)
    assert torch.equal(found.dequantize(), plain.dequantize())


def test_sums_over_batches_are_the_hessian_of_all_tokens():
    _, x, statistics = problem()
    sums = accumulate_inputs(accumulate_inputs(None, x[:100]), x[100:].view(5, 100, 256))
    assert sums.tokens == 600
    torch.testing.assert_close(sums.statistics().hessian, statistics.hessian)
    torch.testing.assert_close(statistics.hessian, 2 * x.T @ x / 600)
    torch.testing.assert_close(statistics.mean_abs, x.abs().mean(0))


def llama_block(kv_heads):
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=kv_heads
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    block = LlamaDecoderLayer(config, 0)
    positions = torch.arange(12)[None]
    hidden = torch.randn(1, 12, 64)
    rope = LlamaRotaryEmbedding(config)(hidden, positions)
    return block, lambda: _first(block(hidden, position_embeddings=rope))


def opt_block():
    config = OPTConfig(hidden_size=64, ffn_dim=96, num_attention_heads=4, dropout=0.0)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    block = OPTDecoderLayer(config, 0).train(False)
    hidden = torch.randn(1, 12, 64)
    mask = torch.zeros(1, 1, 12, 12)
    return block, lambda: _first(block(hidden, attention_mask=mask))


def _first(output):
    return output[0] if isinstance(output, tuple) else output


def statistics_of(block, run):
    sums, hooks = {}, []

    def adding(name):
        def add(_module, args, _output):
            sums[name] = accumulate_inputs(sums.get(name), args[0])

        return add

    for name, module in block.named_modules():
        if isinstance(module, torch.nn.Linear):
            hooks.append(module.register_forward_hook(adding(name)))
    run()
    for hook in hooks:
        hook.remove()
    return {name: total.statistics() for name, total in sums.items()}


BLOCKS = {"llama": lambda: llama_block(4), "gqa": lambda: llama_block(2), "opt": opt_block}


@pytest.mark.parametrize("family", BLOCKS)
@torch.no_grad()
def test_a_scaled_block_is_the_same_function_of_other_weights(family):
    block, run = BLOCKS[family]()
    for name, parameter in block.named_parameters():
        if "norm" in name and name.endswith("weight"):  # channels of different magnitude
            parameter.copy_(torch.randn(64).exp())
    before, weights = run(), {n: p.clone() for n, p in block.named_parameters()}
    collected = statistics_of(block, run)
    chosen = dict.fromkeys(collected, Settings(format="awq-w3-g64"))
    dtypes = {name: parameter.dtype for name, parameter in block.named_parameters()}
    scaled, foldings = scale_block(block, collected, chosen, dtypes)
    torch.testing.assert_close(run(), before, rtol=1e-4, atol=1e-5)
    changed = {n for n, p in block.named_parameters() if not torch.equal(p, weights[n])}
    output = "self_attn.out_proj.weight" if family == "opt" else "self_attn.o_proj.weight"
    assert (output in changed) == (family != "gqa")
    assert "self_attn.q_proj.weight" in changed
    after = statistics_of(block, run)
    for name, statistics in scaled.items():
        tolerance = {"rtol": 1e-3, "atol": 1e-4 * float(statistics.hessian.abs().max())}
        torch.testing.assert_close(statistics.hessian, after[name].hessian, **tolerance)
        torch.testing.assert_close(statistics.mean_abs, after[name].mean_abs, rtol=1e-3, atol=1e-5)
        parts = {part: foldings[f"{name}.{part}"] for part in (ROWS, COLUMNS)
                 if f"{name}.{part}" in foldings}  # fmt: skip
        original = unfolded(block.get_submodule(name).weight, parts)
        torch.testing.assert_close(original, weights[f"{name}.weight"])


def test_folding_divides_before_and_multiplies_after():
    norm, linear = torch.nn.LayerNorm(3), torch.nn.Linear(3, 2, bias=False)
    weight = linear.weight.detach().clone()
    fold_scale(norm, [linear], torch.tensor([1.0, 2.0, 4.0]), dtype=torch.float32)
    assert norm.weight.tolist() == [1.0, 0.5, 0.25]
    assert torch.equal(linear.weight, weight * torch.tensor([1.0, 2.0, 4.0]))


def test_a_folded_norm_loses_nothing_when_it_is_stored():
    """Its rounding to FP16 goes into the scale; channels that FP16 cannot hold stay as they are."""
    norm, linear = torch.nn.RMSNorm(4), torch.nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 1.7, 2.0**-24, 0.0]))
    was, weight = norm.weight.detach().clone(), linear.weight.detach().clone()
    wanted = torch.tensor([3.0, 0.3, 1e3, 2.0])
    scale = fold_scale(norm, [linear], wanted, dtype=torch.float16)
    stored = norm.weight.half().float()
    torch.testing.assert_close(stored, norm.weight, rtol=1e-6, atol=0)
    torch.testing.assert_close(scale[:2], wanted[:2], rtol=2**-10, atol=0)
    assert scale[2:].tolist() == [1.0, 1.0]
    torch.testing.assert_close(linear.weight * stored, weight * was, rtol=1e-6, atol=0)


def test_only_pairs_whose_readers_are_all_awqs_are_scaled_and_squared_gradients_follow():
    block, run = llama_block(4)
    rtn, awq = Settings(format="rtn-w4"), Settings(format="awq-w4-g64")
    collected = {
        name: replace(found, fisher=block.get_submodule(name).weight.detach().square())
        for name, found in statistics_of(block, run).items()
    }
    settings = dict.fromkeys(collected, awq) | {"self_attn.q_proj": rtn, "mlp.up_proj": rtn}
    before = {name: p.clone() for name, p in block.named_parameters()}
    dtypes = {name: p.dtype for name, p in block.named_parameters()}
    scaled, foldings = scale_block(block, collected, settings, dtypes)
    assert sorted(foldings) == [
        *("mlp.down_proj.folded_columns", "mlp.up_proj.folded_rows"),
        *("self_attn.o_proj.folded_columns", "self_attn.v_proj.folded_rows"),
    ]
    assert torch.equal(block.self_attn.q_proj.weight, before["self_attn.q_proj.weight"])
    for name in ("mlp.up_proj", "mlp.down_proj"):  # F dW^2 does not depend on the scale
        mass = collected[name].fisher * before[f"{name}.weight"].square()
        folded = scaled[name].fisher * block.get_submodule(name).weight.square()
        torch.testing.assert_close(folded, mass)


def test_an_unknown_block_is_refused():
    with pytest.raises(SettingsError, match="does not know how to scale a Sequential"):
        scale_block(torch.nn.Sequential(), {}, {}, {})

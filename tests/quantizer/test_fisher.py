"""Fisher diagonals against a plain backward pass over the whole model."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from quantizer.methods.matrix import SettingsError
from quantizer.sensitivity.fisher import change_losses, fisher_statistics


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    return model, {f"model.layers.{i}": layer for i, layer in enumerate(model.model.layers)}


def opt():
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=40, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32, word_embed_proj_dim=32,
    )  # fmt: skip
    model = OPTForCausalLM(config)
    layers = model.model.decoder.layers
    return model, {f"model.decoder.layers.{i}": layer for i, layer in enumerate(layers)}


def sequences(count=4, length=11):
    return torch.randint(0, 40, (count, length), generator=torch.Generator().manual_seed(1))


def mean_loss(model, ids):
    logits = model(ids).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize("family", [llama, opt])
def test_it_is_the_sum_of_squared_gradients(family):
    model, blocks = family()
    ids = sequences()
    found = fisher_statistics(model, ids, blocks=blocks)
    model.train(False)
    due = {name: torch.zeros_like(found[name]) for name in found}
    for sequence in ids:
        model.zero_grad()
        mean_loss(model, sequence[None]).backward()
        for name in due:
            due[name] += model.get_parameter(name).grad.square()
    assert len(due) == sum(isinstance(m, torch.nn.Linear) for m in model.modules()) - 1  # lm_head
    for name in due:
        torch.testing.assert_close(found[name], due[name], rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("family", [llama, opt])
def test_the_token_form_has_the_square_of_every_position(family):
    """The last block has no attention after it, so its down projection is exact per token."""
    model, blocks = family()
    ids = sequences(count=2, length=7)
    found = fisher_statistics(model, ids, blocks=blocks, token=True)
    model.train(False)
    name = list(found)[-1]
    due = torch.zeros_like(found[name])
    for sequence in ids:
        logits = model(sequence[None]).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, sequence[1:], reduction="none")
        for loss in losses:
            gradient = torch.autograd.grad(loss, model.get_parameter(name), retain_graph=True)[0]
            due += gradient.square()
    torch.testing.assert_close(found[name], due / 12, rtol=1e-4, atol=1e-12)


def test_the_forecast_is_the_rise_of_the_loss_of_a_model_at_its_optimum():
    """Random small changes of a model whose labels it predicts itself: within 25 %."""
    model, blocks = llama()
    model.train(False)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # a model that is sure of something
        ids = model.generate(
            sequences(64, 1), max_new_tokens=15, do_sample=True, top_k=0, pad_token_id=0
        )
        before = float(mean_loss(model, ids))
    generator = torch.Generator().manual_seed(2)
    names = [f"{p}.{n}.weight" for p, b in blocks.items() for n, m in b.named_modules()
             if isinstance(m, torch.nn.Linear)]  # fmt: skip
    weights = {name: model.get_parameter(name).detach().clone() for name in names}
    changes = {
        name: 0.05 * weight.std() * torch.randn(weight.shape, generator=generator)
        for name, weight in weights.items()
    }
    forecast = change_losses(model, ids, {"": changes}, blocks=blocks)[""]
    rises = []
    with torch.no_grad():
        for name, weight in weights.items():
            for sign in (1, -1):  # the first-order term cancels
                model.get_parameter(name).copy_(weight + sign * changes[name])
                rises.append(float(mean_loss(model, ids)) - before)
            model.get_parameter(name).copy_(weight)
    assert sum(rises) / 2 == pytest.approx(sum(forecast.values()), rel=0.25)


def test_the_loss_of_a_single_changed_weight_is_its_diagonal():
    model, blocks = llama()
    ids = sequences()
    fisher = fisher_statistics(model, ids, blocks=blocks, token=True)
    name = "model.layers.1.mlp.up_proj.weight"
    change = torch.zeros_like(fisher[name])
    change[5, 7] = 0.125
    found = change_losses(model, ids, {"": {name: change}}, blocks=blocks)[""]
    due = 0.5 * float(fisher[name][5, 7]) * 0.125**2
    assert found == pytest.approx({name: due}, rel=1e-5)


def test_errors_that_make_up_for_each_other_cost_nothing_only_without_the_diagonal():
    """Two weights of a row whose inputs are always equal, changed by +e and -e."""
    model, blocks = llama()
    ids = sequences()
    with torch.no_grad():  # channels 0 and 1 after the norm are equal: so are all their makers
        model.model.embed_tokens.weight[:, 1] = model.model.embed_tokens.weight[:, 0]
        for layer in model.model.layers:
            for maker in (layer.self_attn.o_proj, layer.mlp.down_proj):
                maker.weight[1] = maker.weight[0]
    fisher = fisher_statistics(model, ids, blocks=blocks, token=True)
    name = "model.layers.1.mlp.up_proj.weight"
    change = torch.zeros_like(fisher[name])
    change[5, :2] = torch.tensor([0.125, -0.125])
    diagonal = 0.5 * float((fisher[name] * change.square()).sum())
    found = change_losses(model, ids, {"": {name: change}}, blocks=blocks)[""]
    assert found[name] < 1e-6 * diagonal


def test_the_model_is_left_as_it_was():
    model, blocks = llama()
    model.train(True)
    model.lm_head.weight.requires_grad_(False)
    fisher_statistics(model, sequences(1), blocks=blocks)
    assert model.training
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    assert [name for name, wants in wanted.items() if not wants] == ["lm_head.weight"]
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_progress_is_told_after_each_sequence():
    model, blocks = llama()
    told = []
    fisher_statistics(model, sequences(3), blocks=blocks, progress=lambda *at: told.append(at))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_only_one_block_has_gradients_at_a_time():
    """Activations of a block die before the block before it runs backward."""
    model, blocks = llama()
    alive, most = set(), []

    def forward(module, _args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.grad_fn is not None:
            alive.add(id(module))
            most.append(len(alive))
            hidden.register_hook(lambda _gradient: alive.discard(id(module)))

    for block in blocks.values():
        block.register_forward_hook(forward)
    fisher_statistics(model, sequences(2), blocks=blocks)
    assert len(most) == 6
    assert max(most) == 1


def test_a_gradient_that_is_not_finite_is_an_error():
    model, blocks = llama()
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(SettingsError, match=r"Fisher information of model.layers.0.* not finite"):
        fisher_statistics(model, sequences(1), blocks=blocks)


@pytest.mark.parametrize("shape", [(4,), (0, 8), (2, 1)])
def test_ids_of_another_shape_are_refused(shape):
    model, blocks = llama()
    with pytest.raises(SettingsError, match="shape of ids"):
        fisher_statistics(model, torch.zeros(shape, dtype=torch.long), blocks=blocks)

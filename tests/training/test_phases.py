"""Models whose parts are trained in turn."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch

from recexp.models.recvae import RecVAE
from recexp.testing import toy
from recexp.training.phases import enter_epoch, leave_phases, phase_of
from tests.perf.test_work import module_of
from tests.support.fitting import fit
from tests.support.processes import Run

WORDS = ("model=recvae", "model.n_factors=4", "model.n_inner=8", "batch_size=50")
ENCODER, DECODER, PRIOR = "encoder.", "output", "old_encoder."


class Weights(pl.Callback):
    """The state of the model before training and after each epoch."""

    def __init__(self) -> None:
        self.states: list[dict] = []

    def on_train_start(self, trainer, module):
        self._keep(module)

    def on_train_epoch_end(self, trainer, module):
        self._keep(module)

    def _keep(self, module):
        self.states.append({k: v.clone() for k, v in module.model.state_dict().items()})

    def changed(self, epoch: int) -> set[str]:
        """Which of the parts the epoch changed."""
        before, after = self.states[epoch : epoch + 2]
        names = [name for name in after if not torch.equal(before[name], after[name])]
        parts = (ENCODER, DECODER, PRIOR)
        return {part for part in parts if any(name.startswith(part) for name in names)}


def trained(folder, weights, **options):
    module, data = module_of(folder, *WORDS, "protocol=full_unseen")
    fit(module, data, folder, max_epochs=6, callbacks=[weights], **options)
    return module.model


def test_each_epoch_trains_the_parameters_of_its_phase(tmp_path):
    weights = Weights()
    model = trained(tmp_path / "run", weights)
    changed = [weights.changed(epoch) for epoch in range(6)]
    assert changed == [{ENCODER}] * 3 + [{DECODER, PRIOR}] + [{ENCODER}] * 2
    after_encoder, after_decoder = weights.states[3], weights.states[4]
    for name in after_encoder:
        if name.startswith(ENCODER):
            assert torch.equal(after_decoder[f"old_{name}"], after_encoder[name])
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"gradient_clip_val": 1.0}, {"accumulate_grad_batches": 2}])
def test_lightnings_own_steps_keep_to_the_phases(tmp_path, options):
    weights = Weights()
    trained(tmp_path / "run", weights, **options)
    changed = [weights.changed(epoch) for epoch in range(6)]
    assert changed == [{ENCODER}] * 3 + [{DECODER, PRIOR}] + [{ENCODER}] * 2


@pytest.mark.slow
def test_two_processes_keep_to_the_phases(tmp_path):
    """The prior takes over the encoder's weights at the start of the decoder's epoch, the last."""
    run = Run(tmp_path / "run", "trainer=ddp_cpu2", *WORDS, "trainer.max_epochs=4", training=False)
    assert run.ended() == 0, run.said()
    content = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    state = {k.removeprefix("model."): x for k, x in content["state_dict"].items()}
    names = [name for name in state if name.startswith(ENCODER)]
    assert names and all(torch.equal(state[name], state[f"old_{name}"]) for name in names)
    states = content["optimizer_states"][0]["state"]
    steps = {int(entry["step"]) for entry in states.values()}
    per_epoch = content["global_step"] // 4
    assert steps == {per_epoch, 3 * per_epoch}


def test_phases_follow_each_other_again_and_again():
    phases = RecVAE(toy.schema(), n_factors=2, n_inner=2, decoder_epochs=2).phases()
    names = [phase_of(phases, epoch).name for epoch in range(11)]
    assert names == (["encoder"] * 3 + ["decoder"] * 2) * 2 + ["encoder"]


def test_a_model_without_phases_is_left_alone():
    model = RecVAE(toy.schema(), n_factors=2, n_inner=2)
    model.phases = tuple
    model.output_bias.requires_grad_(False)
    enter_epoch(model, 3)
    leave_phases(model)
    assert model.thins_input and not model.output_bias.requires_grad

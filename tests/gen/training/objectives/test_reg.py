"""REG: image and class token as one state, weighed apart, aligned together."""

from dataclasses import replace

import pytest
import torch

from gen.config.errors import UserError
from gen.diffusion.tap import FeatureRecorder
from gen.training.objectives.reg import REG
from tests.gen.training.objectives.aligned import SMALL, batch_of, roles_of, run_of


def test_the_loss_is_its_parts():
    run = run_of("reg")
    roles, batch = roles_of(run), batch_of(run)
    f = roles["net"]
    ((_, loss, logs),) = run.objective(roles, batch)

    encoder = run.objective.encoder.load()
    tokens, cls = encoder(batch.x)
    t, cond = run.objective.draw(f, batch)
    noise = batch.normal("eps").flatten(1), batch.noise.normal("eps.cls", (64,))
    at = t.float()[:, None]
    state = torch.cat([(1 - at) * batch.x.flatten(1) + at * noise[0], (1 - at) * cls + at * noise[1]], 1)
    record = FeatureRecorder(("hidden.1",))
    out = f.net(state, t.float(), cond, tap=record)
    image = ((out[:, :64] - (noise[0] - batch.x.flatten(1))) ** 2).mean()
    token = ((out[:, 64:] - (noise[1] - cls)) ** 2).mean()
    targets = torch.cat([cls[:, None], tokens], 1)  # the class token first, as in the network
    aligned = -torch.cosine_similarity(roles["head"].net(record.features["hidden.1"]), targets, dim=-1).mean()
    assert targets.shape[1] == 17
    torch.testing.assert_close(logs["denoising"], image + 0.03 * token, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss, image + 0.03 * token + 0.5 * aligned, rtol=1e-5, atol=1e-6)


def test_image_and_class_token_have_noise_of_their_own():
    """The image's is what it would be without a class token."""
    run = run_of("reg")
    seen = []

    class Spy:
        def __init__(self, inner):
            self.inner = inner

        def normal(self, name, shape):
            seen.append((name, tuple(shape)))
            return self.inner.normal(name, shape)

        def uniform(self, name):
            return self.inner.uniform(name)

    batch = batch_of(run)
    next(run.objective(roles_of(run), replace(batch, noise=Spy(batch.noise))))
    assert seen == [("eps", (64,)), ("eps.cls", (64,))]
    assert torch.equal(batch.noise.normal("eps", (64,)), batch.normal("eps").flatten(1))


def test_validation_denoises_the_joint_state():
    run = run_of("reg")
    loss = run.objective.validate(roles_of(run), batch_of(run))
    assert loss.ndim == 0 and loss > 0
    assert loss != replace(run.objective, cls_weight=0.0).validate(roles_of(run), batch_of(run))


def test_wrong_networks_and_encoders_are_one_line():
    with pytest.raises(UserError, match=r"model reg with cls_dim = 64.*this is a DiT with cls_dim = None"):
        run_of("reg").objective.roles(run_of("repa").model.build(), None)
    with pytest.raises(UserError, match=r"this is a REG with cls_dim = 5"):
        run = run_of("reg", model={**SMALL, "name": "reg", "cls_dim": 5})
        run.objective.roles(run.model.build(), None)
    for name in ("denoise", "repa", "urepa", "erw", "curriculum", "uncertainty"):
        with pytest.raises(UserError, match=r"trains on images alone, .* the model reg with the objective reg"):
            run = run_of("reg", objective=name)
            run.objective.roles(run.model.build(), None)
    with pytest.raises(UserError, match=r"encoder\.cls is False"):
        REG(encoder="stored")
    with pytest.raises(UserError, match=r"cls_weight = -1\.0"):
        REG(cls_weight=-1.0)

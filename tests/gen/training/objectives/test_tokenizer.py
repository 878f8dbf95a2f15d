"""Tokenizers: weights of losses at the last layers, the order of two roles, and closed forms of augmented decoding."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import build
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import training_noise
from gen.diffusion.parameterisation import X0
from gen.diffusion.path import Flow
from gen.eval.features.lib.lpips import Lpips
from gen.eval.perceptual.lpips import PerceptualLoss
from gen.models.discriminators.patch_gan import PatchGAN
from gen.training.log import read_metrics
from gen.training.objectives import Batch
from gen.training.objectives.lib.adversarial import DiffAug, generator_hinge, hinge
from gen.training.objectives.reconstruct import Reconstruction
from gen.training.objectives.tokenizer import Tokenizer
from gen.training.objectives.vf import VF
from gen.training.schedules import Cosine
from gen.training.trainer import Trainer, train
from tests.eval.test_lpips import random_trunk
from tests.gen.training.test_processes import apart, small, together
from tests.gen.training.test_trainer import same, weights
from tests.models.discriminators.test_dino import SMALL

GAN = {"discriminator": PatchGAN(width=8, layers=1)}
KL = {"name": "kl", "preset": "digits"}


def roles_of(objective, **model):
    torch.manual_seed(0)
    net = build("models.autoencoders", {**KL, **model}).build().double()
    return {k: Denoiser(v.double(), Flow(), X0()) for k, v in objective.roles(net, None).items()}


def batch_of(step=0, n=4):
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double() * 2 - 1
    return Batch(x, {}, training_noise(0, step, range(n)), step=step)


def test_the_discriminator_is_the_published_one():
    for norm in ("batch", "group"):
        net = PatchGAN(norm=norm).build(3, (256, 256))
        assert sum(p.numel() for p in net.parameters()) == 2_765_633
    for side, logits in ((256, 30), (24, 1)):
        assert PatchGAN(width=2).build(3, (side, side))(torch.zeros(1, 3, side, side)).shape == (1, 1, logits, logits)
    x = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (seen,) = torch.autograd.grad(no_norms(PatchGAN(width=2).build(3, (256, 256)))(x)[0, 0, 15, 15], x)
    assert [int(seen.abs().sum((0, 1, dim)).count_nonzero()) for dim in (2, 3)] == [70, 70]
    zero = torch.zeros(2, 1, 3, 3)
    assert (float(hinge(zero, zero)), float(generator_hinge(zero))) == (1, 0)
    assert float(hinge(zero + 3, zero - 0.5)) == 0.25
    with pytest.raises(UserError, match="takes pictures of 24 pixels at least, these have 8 x 8"):
        Tokenizer().roles(build("models.autoencoders", KL).build(), None)


def no_norms(net):
    """Without norms, through which a logit sees the whole picture."""
    return nn.Sequential(*(m for m in net if not isinstance(m, nn.GroupNorm)))


def test_at_the_last_layer_the_discriminator_pulls_as_hard_as_the_pictures():
    objective = Tokenizer(**GAN, gan_weight=1.0, gan_eps=1e-12, kl=0.0)
    roles, batch = roles_of(objective), batch_of()
    last = roles["net"].net.last_layer
    (role, loss, logs), (other, _, _) = objective(roles, batch)
    assert (role, other) == ("net", "discriminator")
    (whole,) = torch.autograd.grad(loss, last, retain_graph=True)
    (main,) = torch.autograd.grad(logs["reconstruction"], last, retain_graph=True)
    assert float((whole - main).norm()) == pytest.approx(float(main.norm()), rel=1e-9)
    _, bounded, less = next(iter(replace(objective, gan_most=1e-3)(roles, batch)))
    assert float(less["adversarial_weight"]) == 1e-3
    assert float(bounded.detach()) == pytest.approx(
        float((logs["reconstruction"] + 1e-3 * logs["adversarial"]).detach())
    )


def test_at_the_encoder_s_last_layer_the_features_pull_as_hard():
    objective = VF(gan_weight=0.0, kl=0.0, vf_weight=1.0, vf_eps=1e-12)
    roles, batch = roles_of(objective), batch_of()
    ((role, loss, logs),) = objective(roles, batch)
    assert role == ("net", "projection") and roles["projection"].net.bias is None
    layer = roles["net"].net.latent_layer
    (whole,) = torch.autograd.grad(loss, layer, retain_graph=True)
    (main,) = torch.autograd.grad(logs["reconstruction"], layer, retain_graph=True)
    assert float((whole - main).norm()) == pytest.approx(float(main.norm()), rel=1e-9)
    loss.backward()
    assert roles["projection"].net.weight.grad.abs().sum() > 0
    frozen = build("models.autoencoders", "rae").build()
    for net, says in (
        (frozen, "frozen: take tokenizer"),
        (build("models.autoencoders", {**KL, "multipliers": [1, 1, 1]}).build(), "latents are 2 x 2"),
    ):
        with pytest.raises(UserError, match=says):
            VF(gan_weight=0.0).roles(net, None)


def test_a_role_begins_at_its_step():
    objective = Tokenizer(**GAN, gan_start=3, discriminator_start=2)
    roles = roles_of(objective)
    seen = [[(role, "adversarial" in logs) for role, _, logs in objective(roles, batch_of(step))] for step in (1, 2, 3)]
    assert seen == [
        [("net", False)],
        [("net", False), ("discriminator", False)],
        [("net", True), ("discriminator", False)],
    ]
    held = float(objective.validate(roles, batch_of(3)).detach())
    assert held == float(Reconstruction().validate(roles, batch_of(3)).detach())
    (first, *_) = Tokenizer(gan_weight=0.0)(roles, batch_of())
    assert float(first[1].detach()) == float(next(iter(Reconstruction()(roles, batch_of())))[1].detach())


def test_the_discriminator_sees_a_fresh_reconstruction_without_noise_in_8_bits():
    objective, shown = Tokenizer(**GAN, tau=0.8, quantise=True), []
    roles, batch = roles_of(objective), batch_of()
    for role, _, _ in objective(roles, batch):
        if role == "net":  # an update, as the trainer makes one, and from here on what the discriminator is given
            roles["net"].net.net.decoder.conv_out.bias.data += 0.1
            roles["discriminator"].net.register_forward_pre_hook(lambda _, given: shown.append(given[0]))
    with torch.no_grad():
        noise = {"posterior": batch.noise.normal("posterior", (2, 4, 4)).double()}
        fresh = roles["net"].net(batch.x, torch.zeros(4), noise)
    assert torch.equal(shown[0], batch.x) and not shown[1].requires_grad
    levels = (shown[1] + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-9)
    assert float((shown[1] - fresh.clamp(-1, 1)).abs().max()) <= 0.5 / 127.5 + 1e-9


class Scalar(nn.Module):
    """Latents are the numbers themselves, and decoded to w z."""

    gaussian = False

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1).double())

    def latent_shape(self, x):
        return (1, 1, 1)

    def forward(self, x, t, cond, *, s=None, tap=None):
        return self.w * (x + cond["perturbation"])


@dataclass
class Quantiles:
    """Noise whose signs, and quantiles of sigma, are all there equally often."""

    count: int = 400

    def normal(self, name, shape):
        u = (torch.arange(self.count).double() + 0.5) / self.count
        if name == "sigma":
            z = torch.special.ndtri(u)
            return (z / z.square().mean().sqrt()).repeat(4).reshape(-1, *shape)
        return torch.tensor([1.0, -1.0]).double().repeat_interleave(self.count).repeat(2).reshape(-1, *shape)

    def uniform(self, name):
        return ((torch.arange(self.count).double() + 0.5) / self.count).repeat(4)


@pytest.mark.parametrize(("sigma", "w", "error"), [("uniform", 0.82418, 0.17582), ("half_normal", 0.60976, 0.39024)])
def test_the_best_linear_decoder_of_augmented_latents(sigma, w, error):
    """Of x from N(0, 1): 1 / (1 + q), and the error q / (1 + q), for q = E sigma^2: tau^2 / 3 or tau^2 at tau = 0.8."""
    noise, net = Quantiles(), Scalar()
    x = torch.tensor([1.0, -1.0]).double().repeat_interleave(2 * noise.count).reshape(-1, 1, 1, 1)
    objective = Tokenizer(distance="l2", gan_weight=0.0, tau=0.8, sigma=sigma)
    optim = torch.optim.LBFGS(net.parameters(), line_search_fn="strong_wolfe")
    loss = torch.zeros(())

    def closure():
        nonlocal loss
        optim.zero_grad()
        ((_, loss, _),) = objective({"net": Denoiser(net, Flow(), X0())}, Batch(x, {}, noise))
        loss.backward()
        return loss

    optim.step(closure)
    assert (float(net.w.detach()), float(loss.detach())) == pytest.approx((w, error), abs=1e-5)


def test_lpips_as_a_loss_is_the_metric_and_has_finite_gradients(tmp_path):
    """Where no feature is active, as in black pictures of some networks, a norm has no slope."""
    state = {k: -v.abs() if k.endswith("bias") else v for k, v in random_trunk("alex").items()}
    torch.save(state, tmp_path / "alexnet.pth")
    loss, metric = PerceptualLoss("alex", str(tmp_path / "alexnet.pth")), Lpips("alex", str(tmp_path / "alexnet.pth"))
    a, b = torch.randint(0, 256, (2, 2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x = (a / 127.5 - 1).requires_grad_()
    torch.testing.assert_close(loss(x, b / 127.5 - 1).detach(), metric.load()(a, b), rtol=1e-5, atol=0)
    flat = torch.tensor([-0.030, -0.088, -0.188])[:, None, None].expand(2, 3, 32, 32).clone().requires_grad_()
    for output in (x, flat):
        (slope,) = torch.autograd.grad(loss(output, b / 127.5 - 1).sum() + loss(output, output.detach()).sum(), output)
        assert slope.isfinite().all()
    with pytest.raises(UserError, match="31 pixels at least"):
        loss(x[..., :30], x[..., :30])
    objective = Tokenizer(perceptual=loss, perceptual_weight=2.0)
    total, logs = objective.image_loss(x, b / 127.5 - 1)
    assert float(total.detach()) == pytest.approx(float((logs["reconstruction"] + 2 * logs["perceptual"]).detach()))


def adversarial(objective, **changes):
    return small(model=KL, objective=objective, parameterisation="x0", sample_every=0, **changes)


AGAINST_DINO = Tokenizer(discriminator=SMALL, augment=DiffAug(cutout=0.25), discriminator_start=1, discriminator_lr=0.5)
OBJECTIVES = {
    "patches": Tokenizer(**GAN, gan_start=2, tau=0.5, quantise=True),
    "vf": VF(**GAN),
    "dino": AGAINST_DINO,
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_stopping_between_two_adversaries_and_going_on_gives_the_same_bits(objective, tmp_path):
    changes = {"optim": {"name": "adamw", "lr": 1e-3, "betas": [0.5, 0.9]}, "batch_size": 4}
    train(adversarial(objective, **changes), tmp_path / "whole", quiet=True)
    train(adversarial(objective, **changes, steps=3), tmp_path / "parts", quiet=True)
    train(adversarial(objective, **changes), tmp_path / "parts", quiet=True)
    for place in ("final", "checkpoints/step-0000006"):
        assert same(weights(tmp_path / "whole", place), weights(tmp_path / "parts", place))
    files = checkpoints.file_names(checkpoints.read(tmp_path / "whole/checkpoints/step-0000006"))
    assert any("discriminator" in name for name in files)
    logs = [read_metrics(tmp_path / folder / "metrics.jsonl") for folder in ("whole", "parts")]
    assert logs[0] == logs[1] and "adversarial_weight" in logs[0][-2]


def test_the_discriminator_s_learning_rate_begins_with_its_first_update(tmp_path):
    """RAE's schedules: warmed up alike, each from its own start."""
    curve = Cosine(warmup=2, floor=0.1)
    run = adversarial(AGAINST_DINO, optim={"name": "adamw", "lr": 1e-3}, schedule=curve, batch_size=4)
    trainer, seen = Trainer(run, tmp_path / "run", "never", "test", True), []
    for batches in trainer.batches():
        trainer.step(batches)
        seen.append([trainer.optims[role].param_groups[0]["lr"] for role in ("net", "discriminator")])
        if len(seen) == 4:
            break
    for step, (net, discriminator) in enumerate(seen):
        assert net == 1e-3 * curve.factor(step, run.steps)
        if step:
            assert discriminator == 0.5 * (1e-3 * curve.factor(step - 1, run.steps))


def test_the_discriminator_sees_augmented_pictures():
    plain, augmented = (Tokenizer(**GAN, augment=augment) for augment in (None, DiffAug()))
    roles, batch, shown = roles_of(plain), batch_of(), []
    roles["discriminator"].net.register_forward_pre_hook(lambda _, given: shown.append(given[0]))
    for objective in (plain, augmented):
        list(objective(roles, batch))
    out, x, fake = shown[:3]
    assert torch.equal(x, batch.x) and torch.equal(out.detach(), fake)
    for kind, before, after in zip(("generator", "real", "fake"), shown[:3], shown[3:], strict=True):
        assert torch.equal(after, DiffAug()(before, batch.noise, f"augment {kind}"))


@pytest.mark.slow
def test_two_processes_train_two_adversaries_as_one_with_the_same_micro_batches(tmp_path):
    run = adversarial(VF(**GAN, tau=0.5), micro_batch_size=4)
    train(run, tmp_path / "one", quiet=True)
    together(run, tmp_path / "two")
    assert apart(tmp_path / "one/final", tmp_path / "two/final") < 1e-6

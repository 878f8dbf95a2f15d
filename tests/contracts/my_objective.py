"""A user's objective, outside gen: the absolute error of the predicted data, at uniform times."""

from dataclasses import dataclass

from gen.training.objectives import Objective


@dataclass(frozen=True)
class MyObjective(Objective):
    weight: float = 1.0

    def __call__(self, roles, batch):
        f, t, eps = roles["net"], batch.noise.uniform("t").to(batch.x), batch.normal("eps")
        error = (f(f.path.mix(batch.x, eps, t), t, batch.cond).x0 - batch.x).abs().mean()
        yield "net", self.weight * error, {"error": error}

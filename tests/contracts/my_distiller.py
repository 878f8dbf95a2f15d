"""A user's distiller, outside gen: the student predicts what its teacher predicts."""

from dataclasses import dataclass, replace

from gen.training.distillation import Distiller


@dataclass(frozen=True)
class MyDistiller(Distiller):
    def student(self, run, teacher, folder):
        return replace(run, objective=self, teacher=str(teacher))

    def __call__(self, roles, batch):
        t, path = batch.noise.uniform("t").to(batch.x), roles["net"].path
        x = path.mix(batch.x, batch.normal("eps"), t)
        ours, theirs = roles["net"](x, t, batch.cond), roles["teacher"](x, t, batch.cond)
        yield "net", (ours.x0 - theirs.x0).square().mean(), {}

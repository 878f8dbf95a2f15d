"""Distillers: one file per method. Contract: gen.training.distillation.Distiller; gen.distill runs one.

    pairs            reflow, rectified_diffusion, knowledge
    trajectories     progressive, phased, sinsr
    scores           dmd2, f_distill, sid; disback around any of them, after degradation
    consistency      consistency, ict, ect, tcm, scm
    flow maps        meanflow, shortcut
    rewards          awm, flow_grpo
    other networks   ld_pruner, cdrl
    text             dparallel, trajectory, learn2pd, diffu_grpo, adapt

Shared pieces are in lib/, distances and rewards in folders of their own. The import name is gen.distillers.
"""

if __name__ != "gen.distillers":
    raise ImportError("import gen.distillers, not distill")

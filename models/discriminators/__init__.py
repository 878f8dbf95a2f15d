"""Discriminators that autoencoders are trained against, one file each: gen.training.objectives.lib.adversarial.

patch_gan    convolutions: LDM's and VA-VAE's            dino    heads on the tokens of a frozen DINO: RAE's
"""

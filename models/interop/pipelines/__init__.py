"""Pipelines of diffusers as denoisers: `listen` to one call of a pipeline, and `denoiser_of` presents its network.

    heard = listen(pipe, prompt=["a red fox"], num_inference_steps=20, height=512, width=512)
    x = integrate(denoiser_of(heard), heard.latents, times_of(heard), Euler(), cond=heard.cond)

A family's peculiarities are one row of the table in gen.models.interop.pipelines.families.
"""

"""Diffusion over latents or spectra: representation, network, objective and schedule, sampler, each on its own."""

"""Diffusion mathematics: noise schedules, timestep draws, DDIM steps."""

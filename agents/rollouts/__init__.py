"""Rollouts: behavior policies, their schedules, and the buffer of labelled trajectories."""

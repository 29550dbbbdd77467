"""Latency history: one immutable file per run and device, a promoted baseline, gates, a plot."""

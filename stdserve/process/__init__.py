"""Processes: a supervisor that binds, forks and watches; workers that serve."""

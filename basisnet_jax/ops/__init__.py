"""Execution: how one kernel per example is convolved, on which backend and at what cost."""

"""A trained run on images: evaluation, calibration of early termination, prediction."""

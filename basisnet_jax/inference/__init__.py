"""A trained model on images: two stages with early termination, its evaluation and calibration."""

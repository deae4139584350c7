"""What a run leaves behind: its config, checkpoints and class names, and how they are read back."""

"""What a run leaves behind: its config, checkpoints and names, and how they are read back."""

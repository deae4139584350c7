"""What layers are built of: how one kernel per example is convolved, by backend; and initial weights."""

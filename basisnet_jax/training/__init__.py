"""One run: the loop, the step, and what it is made of: losses, optimizer, mixup, teacher, initial weights."""

"""One run: the step, what it is made of (losses, optimizer, mixing, teacher, first weights), and the loop around it."""

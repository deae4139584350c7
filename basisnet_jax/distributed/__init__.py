"""Many devices and processes: the mesh, what lies where on it, and what ends a run from outside."""

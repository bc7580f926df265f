"""Programs of a training step, what their nodes cost, and the engine that lets time pass."""

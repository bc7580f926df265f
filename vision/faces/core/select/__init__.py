"""What decides which classes are active: the controller, the forest, draws."""

"""Models, and what is done with them: train, evaluate, export, recommend, replay."""

"""For looking: what every tensor of a call is, layers and cells drawn, and what happens inside a model."""

"""One call of a model, and the two kinds of models with histories: ScalableGNN and what scale() makes."""

"""Proof of a rescaling: the certificate in `rescale.json`, and its checker, which is independent of the solver."""

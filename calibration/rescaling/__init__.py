"""The proof of a rescaling: the certificate in `rescale.json`, and the checker, which knows nothing of the solver."""

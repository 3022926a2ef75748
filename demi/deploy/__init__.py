"""Manifests that run a folder of models on Kubernetes, KServe or Ray; they are written, never applied."""

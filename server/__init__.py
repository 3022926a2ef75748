"""Bundles served over HTTP and gRPC in the KServe v2 / Open Inference Protocol.

`run.serve` tells the story of a server; `http/routes/infer.py` tells the story of one request.
"""

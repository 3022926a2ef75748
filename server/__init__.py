"""Serve bundles over HTTP and gRPC with the KServe v2 / Open Inference Protocol.

Start reading at `run.serve` for the life of a server, and at `http/routes/infer.py` for the life of one request.
"""

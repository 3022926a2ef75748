"""The Open Inference Protocol over gRPC; start reading at `server.py`. grpcio is imported only if gRPC is on."""

"""The Open Inference Protocol over gRPC; `server.py` tells the story. Imported only where gRPC is on."""

"""The least that a gRPC service in Python does: an asynchronous server that returns each message as it came."""

from __future__ import annotations

import sys

import grpc
import uvloop


async def serve(port: int) -> None:
    """Serve until the process is ended; print a line once clients can connect."""

    async def echo(data: bytes, call: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return data

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    methods = {"ModelInfer": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods)])
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("serving", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))

"""The server that ships with every variant: a protocol-free core behind a thin HTTP door.

    python -m tf2aif.serve build/digits/cpu-int8

It imports numpy, the variant's engine, an ASGI server and a metrics library, and nothing that
builds a variant. In the order that a request passes:

    listener    connections: limits of time and size, the stop that loses no request
    http        addresses, headers, status codes
    dataplane   admission, deadlines, and all stages in order; knows no protocol
    codec       messages and tensors to bytes and back
    hooks       the user's functions, on `hook_threads`; ready ones in `images` and `labels`
    batcher     the queue, and the engine's thread
    model       names, shapes, dtypes and quantisation at the door, and the engine behind it
"""

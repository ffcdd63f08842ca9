"""Extensions of Triton that this server does not have, and the reason that a client gets."""

from __future__ import annotations

MODELS = "models are chosen when the server starts; SIGHUP reloads bundles that have changed"
SHARED_MEMORY = "shared memory is not supported; send the tensors in the request"
STREAMS = "streams are not supported; call ModelInfer for each request"
TRACES = "traces are not supported; the log has each request, and /metrics the time of each stage"
LOG = "the settings of the log are chosen when the server starts"

# By the path of HTTP, for every method.
REFUSED_PATHS = {
    "/v2/repository/models/{rest:path}": MODELS,
    "/v2/systemsharedmemory/{rest:path}": SHARED_MEMORY,
    "/v2/cudasharedmemory/{rest:path}": SHARED_MEMORY,
    "/v2/trace/setting": TRACES,
    "/v2/models/{model}/trace/setting": TRACES,
    "/v2/logging": LOG,
}
# By the name of the gRPC method.
REFUSED_METHODS = {
    "ModelStreamInfer": STREAMS,
    **dict.fromkeys(("RepositoryModelLoad", "RepositoryModelUnload"), MODELS),
    **{
        f"{kind}SharedMemory{action}": SHARED_MEMORY
        for kind in ("System", "Cuda")
        for action in ("Status", "Register", "Unregister")
    },
    "TraceSetting": TRACES,
    "LogSettings": LOG,
}

/* Capturing streams, and the graphs that come of it: nodes with fixed addresses, in the order in which they were captured. */
#include "streams.h"

#include <stdlib.h>

enum { GLOBAL, THREAD_LOCAL, RELAXED };

EXPORT_NEW int cuStreamBeginCapture_v2(void *which, int mode) {
    context *here;
    int code = enter(ID_cuStreamBeginCapture_v2, &here);
    if (code != 0) return code;
    object *stream = stream_of(which, here);
    if (stream == NULL) return leave(INVALID_HANDLE);
    if (mode < GLOBAL || mode > RELAXED) return leave(INVALID_VALUE);
    if (is_default(which)) return leave(CAPTURE_UNSUPPORTED);
    if (stream->captured != NULL) return leave(ILLEGAL_STATE);
    capture *made = calloc(1, sizeof *made);
    if (made == NULL) return leave(OUT_OF_MEMORY);
    made->origin = stream->handle;
    made->thread = pthread_self();
    made->mode = mode;
    stream->captured = made;
    stream->joined = 1;
    return leave(0);
}

EXPORT_NEW int cuStreamEndCapture(void *which, void **graph) {
    context *here;
    int code = enter(ID_cuStreamEndCapture, &here);
    if (code != 0) return code;
    object *stream = stream_of(which, here);
    if (stream == NULL) return leave(INVALID_HANDLE);
    capture *in = stream->captured;
    *graph = NULL;
    if (in == NULL) return leave(ILLEGAL_STATE);
    if (in->origin != stream->handle) {
        in->invalid = 1;
        return leave(CAPTURE_UNMATCHED);
    }
    if (in->mode != RELAXED && !pthread_equal(in->thread, pthread_self())) return leave(WRONG_THREAD);
    if (in->invalid) {
        code = CAPTURE_INVALIDATED;
    } else if (!all_joined(in)) {
        code = CAPTURE_UNJOINED;
    } else {
        object *made = add_object(GRAPH, 0, here);
        if (made == NULL) {
            code = OUT_OF_MEMORY;
        } else {
            made->work = in->nodes;
            in->nodes = (operations){0};
            *graph = (void *)(uintptr_t)made->handle;
        }
    }
    end_capture(stream);
    return leave(code);
}

EXPORT_NEW int cuStreamIsCapturing(void *which, int *status) {
    context *here;
    int code = enter(ID_cuStreamIsCapturing, &here);
    if (code != 0) return code;
    const object *stream = stream_of(which, here);
    if (stream == NULL) return leave(INVALID_HANDLE);
    *status = stream->captured == NULL ? 0 : stream->captured->invalid ? 2 : 1;
    return leave(0);
}

/* A graph or exec of this context: 0 and *which, or the code to return. Graphs belong to no context on a device; here they do. */
static int graph_object(int function, const void *handle, int kind, context **here, object **which) {
    int code = enter(function, here);
    if (code != 0) return code;
    *which = find(handle, kind);
    return *which != NULL && (*which)->of == *here ? 0 : leave(INVALID_HANDLE);
}

EXPORT_NEW int cuGraphInstantiateWithFlags(void **exec, const void *graph, unsigned long long flags) {
    context *here;
    object *from;
    int code = graph_object(ID_cuGraphInstantiateWithFlags, graph, GRAPH, &here, &from);
    if (code != 0) return code;
    if (flags != 0) return leave(INVALID_VALUE);
    object *made = add_object(EXEC, 0, here);
    if (made == NULL) return leave(OUT_OF_MEMORY);
    code = append_copies(&made->work, &from->work);
    if (code != 0)
        remove_object(made);
    else
        *exec = (void *)(uintptr_t)made->handle;
    return leave(code);
}

EXPORT_NEW int cuGraphUpload(const void *exec, void *stream) {
    context *here;
    object *which;
    int code = graph_object(ID_cuGraphUpload, exec, EXEC, &here, &which);
    if (code != 0) return code;
    const object *on = stream_of(stream, here);
    if (on == NULL) return leave(INVALID_HANDLE);
    if (on->captured != NULL) on->captured->invalid = 1;
    return leave(on->captured != NULL ? CAPTURE_UNSUPPORTED : 0);
}

EXPORT_NEW int cuGraphLaunch(const void *exec, void *stream) {
    context *here;
    object *which;
    int code = graph_object(ID_cuGraphLaunch, exec, EXEC, &here, &which);
    if (code != 0) return code;
    object *on = stream_of(stream, here);
    if (on == NULL) return leave(INVALID_HANDLE);
    operations nodes = {0};
    code = append_copies(&nodes, &which->work);
    for (int i = 0; i < nodes.count && code == 0; i++) {
        operation node = nodes.items[i];
        nodes.items[i] = (operation){.kind = COPY}; /* what it pointed to is the stream's now */
        if (node.kind == COPY) pageable_copies += is_pageable(&node.copy);
        if (node.kind == LAUNCH && on->captured == NULL) record_launch(node.launch);
        code = enqueue(on, node);
    }
    clear(&nodes);
    return leave(code);
}

static int destroy(int function, const void *handle, int kind, const char *what) {
    context *here;
    int code = enter_to_give_back(function, &here);
    if (code != 0) return code;
    object *which = find(handle, kind);
    if (which == NULL || which->of != here) {
        if (here->error == 0) add_fault("A %s was destroyed that is none (%p).", what, handle);
        return leave(here->error != 0 ? here->error : INVALID_VALUE);
    }
    remove_object(which);
    return leave(here->error);
}

EXPORT_NEW int cuGraphDestroy(void *graph) { return destroy(ID_cuGraphDestroy, graph, GRAPH, "graph"); }

EXPORT_NEW int cuGraphExecDestroy(void *exec) { return destroy(ID_cuGraphExecDestroy, exec, EXEC, "graph exec"); }

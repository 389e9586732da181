/* What streams.c and graphs.c share: operations, streams, events, captures and graphs. The lock is held everywhere. */
#ifndef VAE_EDGE_CUDA_DOUBLE_STREAMS_H
#define VAE_EDGE_CUDA_DOUBLE_STREAMS_H

#include "internal.h"

/* A moment in a stream: reached once what stood before it is done. Event, operations and waiters hold it together. */
typedef struct mark {
    int holders, done;
    uint64_t stream; /* handle */
    long long time_ns;
} mark;

enum { COPY, LAUNCH, HOST_FUNCTION, RECORD, WAIT };

struct operation {
    int kind;
    transfer copy; /* COPY */
    void (*function)(void *); /* HOST_FUNCTION */
    void *user;
    mark *moment; /* RECORD, WAIT */
    double_launch *launch; /* LAUNCH */
};

typedef struct operations {
    operation *items;
    int count, room;
} operations;

/* What is captured from a stream, and from those that join it by events. */
typedef struct capture {
    uint64_t origin; /* handle of the stream that began it */
    pthread_t thread;
    int mode, invalid;
    operations nodes;
} capture;

/* A handle of the driver: stream, event, graph or graph exec. */
typedef struct object {
    uint64_t handle;
    int kind;
    unsigned int flags;
    context *of;
    operations work; /* of a stream: what it is to do; of a graph or exec: its nodes */
    /* streams */
    int running, asked; /* a thread does its work; it was asked whether it is done, and was not */
    pthread_t runner;
    capture *captured;
    int joined; /* of a stream that joined a capture: whether the others wait for all it did */
    /* events */
    mark *moment;
    capture *captured_in;
    uint64_t captured_stream;
} object;

object *find(const void *handle, int kind);
int is_pageable(const transfer *what); /* whether a side of it is memory that the driver does not know */
int is_default(const void *handle); /* whether it is a default stream */
object *stream_of(const void *handle, context *here); /* also the default stream; NULL if it is not of this context */
object *add_object(int kind, unsigned int flags, context *here);
void remove_object(object *which);
int append(operations *to, operation what); /* takes what it points to, also where it fails */
int append_copies(operations *to, const operations *from);
void clear(operations *which);
void release_mark(mark *which);
int enqueue(object *on, operation what); /* on a stream, or what captures it */
int drain(uint64_t handle, const mark *until);
int pending(const object *stream);
void end_capture(object *stream); /* takes apart the capture that it is in, if any */
int all_joined(const capture *in);

#endif

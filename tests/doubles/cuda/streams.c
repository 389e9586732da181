/* Streams and events: what they are to do, and doing it when somebody waits. */
#include "streams.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FIRST_HANDLE UINT64_C(0x5e0000)
#define HANDLE_STEP 0x40 /* no handle is given twice */

long long pageable_copies, default_synchronizations;

static object **objects;
static int object_count, object_room;
static uint64_t next_handle = FIRST_HANDLE;
static object defaults[MAX_CONTEXTS]; /* the default stream of each context; its handle is its number + 1 */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER; /* a stream stopped running */
static _Thread_local context *running_for; /* the context whose work this thread does */

/* ---- Objects ---- */

object *find(const void *handle, int kind) {
    for (int i = 0; i < object_count; i++)
        if (objects[i]->handle == (uint64_t)(uintptr_t)handle && objects[i]->kind == kind) return objects[i];
    return NULL;
}

static object *find_stream(uint64_t handle) {
    if (handle > 0 && handle <= MAX_CONTEXTS) return &defaults[handle - 1];
    return find((const void *)(uintptr_t)handle, STREAM);
}

/* The handles 1 and 2 are CU_STREAM_LEGACY and CU_STREAM_PER_THREAD; here the latter is the default stream as well. */
int is_default(const void *handle) { return (uintptr_t)handle <= 2; }

object *stream_of(const void *handle, context *here) {
    if (is_default(handle)) {
        object *stream = &defaults[here - contexts];
        stream->handle = (uint64_t)(here - contexts) + 1;
        stream->of = here;
        return stream;
    }
    object *stream = find(handle, STREAM);
    return stream != NULL && stream->of == here ? stream : NULL;
}

object *add_object(int kind, unsigned int flags, context *here) {
    if (object_count == object_room) {
        object **more = realloc(objects, (size_t)(object_room + 64) * sizeof *objects);
        if (more == NULL) return NULL;
        objects = more;
        object_room += 64;
    }
    object *made = calloc(1, sizeof *made);
    if (made == NULL) return NULL;
    made->handle = next_handle;
    made->kind = kind;
    made->flags = flags;
    made->of = here;
    next_handle += HANDLE_STEP;
    objects[object_count++] = made;
    return made;
}

void remove_object(object *which) {
    clear(&which->work);
    if (which->moment != NULL) release_mark(which->moment);
    for (int i = 0; i < object_count; i++)
        if (objects[i] == which) objects[i] = objects[--object_count];
    free(which);
    if (object_count == 0) {
        free(objects);
        objects = NULL;
        object_room = 0;
    }
}

int objects_held(int kind) {
    int count = 0;
    for (int i = 0; i < object_count; i++) count += objects[i]->kind == kind;
    return count;
}

void drop_streams(const context *of, int abandoned) {
    for (int i = object_count - 1; i >= 0; i--) {
        if (i >= object_count || objects[i]->of != of) continue;
        if (objects[i]->running) { /* the table may change meanwhile */
            pthread_cond_wait(&changed, &lock);
            i = object_count;
            continue;
        }
        if (objects[i]->kind == STREAM) end_capture(objects[i]);
        remove_object(objects[i]);
        abandoned_count += abandoned;
    }
    clear(&defaults[of - contexts].work);
}

/* ---- Operations ---- */

void release_mark(mark *which) {
    if (--which->holders == 0) free(which);
}

static void discard(operation *what) {
    free(what->launch);
    if (what->moment != NULL) {
        if (what->kind == RECORD) what->moment->done = 1;
        release_mark(what->moment);
    }
}

void clear(operations *which) {
    for (int i = 0; i < which->count; i++) discard(&which->items[i]);
    free(which->items);
    *which = (operations){0};
}

int append(operations *to, operation what) {
    if (to->count == to->room) {
        operation *more = realloc(to->items, (size_t)(to->room + 16) * sizeof *more);
        if (more == NULL) {
            discard(&what);
            return OUT_OF_MEMORY;
        }
        to->items = more;
        to->room += 16;
    }
    to->items[to->count++] = what;
    return 0;
}

int append_copies(operations *to, const operations *from) {
    for (int i = 0; i < from->count; i++) {
        operation what = from->items[i];
        if (what.launch != NULL) {
            double_launch *copied = malloc(sizeof *copied);
            if (copied == NULL) return OUT_OF_MEMORY;
            what.launch = memcpy(copied, what.launch, sizeof *copied);
        }
        int code = append(to, what);
        if (code != 0) return code;
    }
    return 0;
}

int pending(const object *stream) { return stream->work.count > 0 || stream->running; }

static mark *add_mark(object *on) {
    mark *made = calloc(1, sizeof *made);
    if (made == NULL) return NULL;
    made->holders = 1;
    made->stream = on->handle;
    return append(&on->work, (operation){.kind = RECORD, .moment = made}) == 0 ? made : NULL;
}

/* The default stream waits for the blocking streams of its context, and they for it. */
static int wait_for_blocking(object *on) {
    object *of_default = &defaults[on->of - contexts];
    for (int i = -1; i < object_count; i++) {
        object *other = i < 0 ? of_default : objects[i];
        int concerned = on == of_default ? i >= 0 && other->kind == STREAM && other->of == on->of && other->flags == 0 : i < 0;
        if (!concerned || !pending(other) || (on != of_default && on->flags != 0)) continue;
        mark *moment = add_mark(other);
        if (moment == NULL) return OUT_OF_MEMORY;
        moment->holders++;
        int code = append(&on->work, (operation){.kind = WAIT, .moment = moment});
        if (code != 0) return code;
    }
    return 0;
}

int enqueue(object *on, operation what) {
    capture *in = on->captured;
    if (in != NULL) {
        if (in->invalid) {
            discard(&what);
            return CAPTURE_INVALIDATED;
        }
        on->joined = 0;
        return append(&in->nodes, what);
    }
    if (on == &defaults[on->of - contexts])
        for (int i = 0; i < object_count; i++)
            if (objects[i]->kind == STREAM && objects[i]->of == on->of && objects[i]->flags == 0 && objects[i]->captured != NULL) {
                objects[i]->captured->invalid = 1;
                discard(&what);
                return CAPTURE_IMPLICIT;
            }
    on->asked = 0;
    int code = wait_for_blocking(on);
    if (code == 0) return append(&on->work, what);
    discard(&what);
    return code;
}

static int is_unknown(uint64_t address) { return !is_marked(address) && !is_known(address); }
int is_pageable(const transfer *what) { return is_unknown(what->to) || is_unknown(what->from); }

int enqueue_copy(void *stream, context *here, transfer what) {
    object *on = stream_of(stream, here);
    if (on == NULL) return INVALID_HANDLE;
    pageable_copies += is_pageable(&what);
    return enqueue(on, (operation){.kind = COPY, .copy = what});
}

int enqueue_launch(void *stream, const double_launch *launch, context *here) {
    object *on = stream_of(stream, here);
    if (on == NULL) return INVALID_HANDLE;
    double_launch *kept = malloc(sizeof *kept);
    if (kept == NULL) return OUT_OF_MEMORY;
    memcpy(kept, launch, sizeof *kept);
    int recorded = on->captured == NULL, code = enqueue(on, (operation){.kind = LAUNCH, .launch = kept});
    if (code == 0 && recorded) record_launch(launch);
    return code;
}

EXPORT_NEW int double_launch_host(void *stream, void (*function)(void *), void *user) {
    context *here;
    int code = enter(ID_double_launch_host, &here);
    if (code != 0) return code;
    object *on = stream_of(stream, here);
    if (on == NULL) return leave(INVALID_HANDLE);
    return leave(enqueue(on, (operation){.kind = HOST_FUNCTION, .function = function, .user = user}));
}

/* ---- Doing it ---- */

EXPORT_NEW void double_raise(int code) {
    pthread_mutex_lock(&lock);
    if (running_for != NULL && running_for->error == 0) running_for->error = code;
    pthread_mutex_unlock(&lock);
}

static void stop_all(const context *of) {
    for (int i = 0; i < object_count; i++)
        if (objects[i]->of == of && objects[i]->kind == STREAM) clear(&objects[i]->work);
    clear(&defaults[of - contexts].work);
}

/* The stream stays marked as running while the lock is given away, so that nobody does its next work, nor frees it. */
static void run_unlocked(object *stream, const operation *what) {
    context *before = running_for, *of = stream->of;
    stream->running = 1;
    stream->runner = pthread_self();
    running_for = of;
    if (what->kind == WAIT) {
        (void)drain(what->moment->stream, what->moment);
    } else {
        pthread_mutex_unlock(&lock);
        if (what->kind == LAUNCH)
            run_launch(what->launch);
        else
            what->function(what->user);
        pthread_mutex_lock(&lock);
    }
    running_for = before;
    stream->running = 0;
    pthread_cond_broadcast(&changed);
}

static void run(object *stream, operation what) {
    context *of = stream->of;
    struct timespec now;
    switch (what.kind) {
        case COPY: of->error = copy_now(&what.copy); break;
        case RECORD:
            (void)clock_gettime(CLOCK_MONOTONIC, &now);
            what.moment->time_ns = now.tv_sec * 1000000000LL + now.tv_nsec;
            what.moment->done = 1;
            break;
        default: run_unlocked(stream, &what);
    }
    discard(&what);
    if (of->error != 0) stop_all(of);
}

/* Do what a stream is to do, all of it or up to a moment. A stream that vanishes meanwhile is done. */
int drain(uint64_t handle, const mark *until) {
    for (;;) {
        object *stream = find_stream(handle);
        if (stream == NULL || (until != NULL && until->done)) return 0;
        if (stream->running) {
            if (pthread_equal(stream->runner, pthread_self())) return 800; /* not permitted: a function of the stream waits for it */
            pthread_cond_wait(&changed, &lock);
            continue;
        }
        if (stream->work.count == 0) return stream->of == NULL ? 0 : stream->of->error;
        operation next = stream->work.items[0];
        stream->work.count--;
        memmove(stream->work.items, stream->work.items + 1, (size_t)stream->work.count * sizeof next);
        run(stream, next);
    }
}

int drain_default(context *here) {
    object *stream = stream_of(NULL, here);
    int code = wait_for_blocking(stream);
    return code == 0 ? drain(stream->handle, NULL) : code;
}

EXPORT_NEW int cuCtxSynchronize(void) {
    context *here;
    int code = enter(ID_cuCtxSynchronize, &here);
    if (code != 0) return code;
    code = check_unsafe(here);
    if (code == 0) code = drain(stream_of(NULL, here)->handle, NULL);
    for (int i = 0; i < object_count && code == 0; i++)
        if (objects[i]->kind == STREAM && objects[i]->of == here && pending(objects[i])) {
            code = drain(objects[i]->handle, NULL);
            i = -1; /* the table may have changed meanwhile */
        }
    return leave(code == 0 ? here->error : code);
}

/* ---- Streams ---- */

EXPORT_NEW int cuStreamCreate(object **made, unsigned int flags) {
    context *here;
    int code = enter(ID_cuStreamCreate, &here);
    if (code != 0) return code;
    if (flags > 1) return leave(INVALID_VALUE);
    object *stream = add_object(STREAM, flags, here);
    if (stream == NULL) return leave(OUT_OF_MEMORY);
    *made = (object *)(uintptr_t)stream->handle;
    return leave(0);
}

EXPORT_NEW int cuStreamDestroy_v2(void *which) {
    context *here;
    int code = enter_to_give_back(ID_cuStreamDestroy_v2, &here);
    if (code != 0) return code;
    object *stream = find(which, STREAM);
    if (stream == NULL || stream->of != here) {
        if (here->error == 0) add_fault("A stream was destroyed that is none of this context (%p).", which);
        return leave(here->error != 0 ? here->error : INVALID_HANDLE);
    }
    while (stream != NULL && stream->running) {
        pthread_cond_wait(&changed, &lock);
        stream = find(which, STREAM);
    }
    if (stream == NULL) return leave(INVALID_HANDLE);
    if (stream->work.count > 0) add_fault("A stream was destroyed while it had %d operations to do.", stream->work.count);
    if (stream->captured != NULL) end_capture(stream);
    remove_object(stream);
    return leave(here->error);
}

/* A stream that may be waited for or asked: 0 and *stream, or the code to return. */
static int stream_to_wait_for(void *which, context *here, object **stream) {
    *stream = stream_of(which, here);
    if (*stream == NULL) return INVALID_HANDLE;
    if ((*stream)->captured != NULL) {
        (*stream)->captured->invalid = 1;
        return CAPTURE_UNSUPPORTED;
    }
    return check_unsafe(here);
}

EXPORT_NEW int cuStreamSynchronize(void *which) {
    context *here;
    object *stream;
    int code = enter(ID_cuStreamSynchronize, &here);
    if (code != 0) return code;
    code = stream_to_wait_for(which, here, &stream);
    default_synchronizations += is_default(which);
    if (code == 0) code = is_default(which) ? drain_default(here) : drain(stream->handle, NULL);
    return leave(code == 0 ? here->error : code);
}

EXPORT_NEW int cuStreamQuery(void *which) {
    context *here;
    object *stream;
    int code = enter(ID_cuStreamQuery, &here);
    if (code != 0) return code;
    code = stream_to_wait_for(which, here, &stream);
    if (code == 0 && pending(stream)) {
        if (!stream->asked || stream->running) {
            stream->asked = 1;
            return leave(NOT_READY);
        }
        code = drain(stream->handle, NULL);
    }
    return leave(code == 0 ? here->error : code);
}

/* ---- Events ---- */

enum { BLOCKING_SYNC = 1, DISABLE_TIMING = 2 };

EXPORT_NEW int cuEventCreate(object **made, unsigned int flags) {
    context *here;
    int code = enter(ID_cuEventCreate, &here);
    if (code != 0) return code;
    if (flags > (BLOCKING_SYNC | DISABLE_TIMING)) return leave(INVALID_VALUE);
    object *event = add_object(EVENT, flags, here);
    if (event == NULL) return leave(OUT_OF_MEMORY);
    *made = (object *)(uintptr_t)event->handle;
    return leave(0);
}

static object *event_of(const void *handle, const context *here) {
    object *event = find(handle, EVENT);
    return event != NULL && event->of == here ? event : NULL;
}

EXPORT_NEW int cuEventDestroy_v2(void *which) {
    context *here;
    int code = enter_to_give_back(ID_cuEventDestroy_v2, &here);
    if (code != 0) return code;
    object *event = event_of(which, here);
    if (event == NULL) {
        if (here->error == 0) add_fault("An event was destroyed that is none of this context (%p).", which);
        return leave(here->error != 0 ? here->error : INVALID_HANDLE);
    }
    remove_object(event);
    return leave(here->error);
}

EXPORT_NEW int cuEventRecord(void *which, void *stream) {
    context *here;
    int code = enter(ID_cuEventRecord, &here);
    if (code != 0) return code;
    object *event = event_of(which, here), *on = stream_of(stream, here);
    if (event == NULL || on == NULL) return leave(INVALID_HANDLE);
    event->captured_in = on->captured;
    event->captured_stream = on->captured != NULL ? on->handle : 0;
    if (on->captured != NULL) return leave(on->captured->invalid ? CAPTURE_INVALIDATED : 0);
    mark *moment = calloc(1, sizeof *moment);
    if (moment == NULL) return leave(OUT_OF_MEMORY);
    moment->holders = 2;
    moment->stream = on->handle;
    code = enqueue(on, (operation){.kind = RECORD, .moment = moment});
    if (event->moment != NULL) release_mark(event->moment);
    event->moment = moment;
    return leave(code);
}

EXPORT_NEW int cuStreamWaitEvent(void *stream, void *which, unsigned int flags) {
    context *here;
    int code = enter(ID_cuStreamWaitEvent, &here);
    if (code != 0) return code;
    object *event = find(which, EVENT), *on = stream_of(stream, here);
    if (event == NULL || on == NULL) return leave(INVALID_HANDLE);
    if (flags != 0) return leave(INVALID_VALUE);
    if (event->captured_in != NULL) { /* the stream joins the capture */
        if (is_default(stream) || (on->captured != NULL && on->captured != event->captured_in)) {
            event->captured_in->invalid = 1;
            return leave(is_default(stream) ? CAPTURE_IMPLICIT : 902);
        }
        object *other = find((const void *)(uintptr_t)event->captured_stream, STREAM);
        on->captured = event->captured_in;
        on->joined = 0;
        if (other != NULL) other->joined = 1;
        return leave(0);
    }
    if (on->captured != NULL && event->moment != NULL) {
        on->captured->invalid = 1;
        return leave(CAPTURE_ISOLATION);
    }
    if (event->moment == NULL) return leave(0);
    event->moment->holders++;
    return leave(enqueue(on, (operation){.kind = WAIT, .moment = event->moment}));
}

/* An event that may be waited for or asked: 0 and *event, or the code to return. */
static int event_to_wait_for(int function, void *which, object **event, context **here) {
    int code = enter(function, here);
    if (code != 0) return code;
    *event = event_of(which, *here);
    if (*event == NULL) return leave(INVALID_HANDLE);
    if ((*event)->captured_in != NULL) return leave(CAPTURED_EVENT);
    code = check_unsafe(*here);
    return code == 0 ? 0 : leave(code);
}

EXPORT_NEW int cuEventQuery(void *which) {
    context *here;
    object *event;
    int code = event_to_wait_for(ID_cuEventQuery, which, &event, &here);
    if (code != 0) return code;
    if (event->moment == NULL || event->moment->done) return leave(0);
    object *stream = find_stream(event->moment->stream);
    if (stream != NULL && (!stream->asked || stream->running)) {
        stream->asked = 1;
        return leave(NOT_READY);
    }
    code = drain(event->moment->stream, event->moment);
    return leave(code == 0 ? here->error : code);
}

EXPORT_NEW int cuEventSynchronize(void *which) {
    context *here;
    object *event;
    int code = event_to_wait_for(ID_cuEventSynchronize, which, &event, &here);
    if (code != 0) return code;
    if (event->moment != NULL) {
        mark *moment = event->moment; /* another thread may record or destroy the event meanwhile */
        moment->holders++;
        code = drain(moment->stream, moment);
        release_mark(moment);
    }
    return leave(code == 0 ? here->error : code);
}

EXPORT_NEW int cuEventElapsedTime(float *milliseconds, void *start, void *end) {
    context *here;
    int code = enter(ID_cuEventElapsedTime, &here);
    if (code != 0) return code;
    const object *first = event_of(start, here), *last = event_of(end, here);
    if (first == NULL || last == NULL || first->moment == NULL || last->moment == NULL) return leave(INVALID_HANDLE);
    if ((first->flags | last->flags) & DISABLE_TIMING) return leave(INVALID_HANDLE);
    if (!first->moment->done || !last->moment->done) return leave(NOT_READY);
    *milliseconds = (float)((double)(last->moment->time_ns - first->moment->time_ns) / 1e6);
    return leave(0);
}

/* ---- Captures ---- */

/* The streams that are in it go on as before; events that were recorded in it are as new. */
void end_capture(object *stream) {
    capture *in = stream->captured;
    if (in == NULL) return;
    for (int i = 0; i < object_count; i++) {
        if (objects[i]->captured == in) objects[i]->captured = NULL;
        if (objects[i]->captured_in == in) objects[i]->captured_in = NULL;
    }
    clear(&in->nodes);
    free(in);
}

int all_joined(const capture *in) {
    for (int i = 0; i < object_count; i++)
        if (objects[i]->captured == in && objects[i]->handle != in->origin && !objects[i]->joined) return 0;
    return 1;
}

/* Whether a capture forbids calls that allocate or wait: of this thread, or of any thread where its mode is global. */
int check_unsafe(context *here) {
    int unsafe = 0;
    (void)here;
    for (int i = 0; i < object_count; i++) {
        capture *in = objects[i]->kind == STREAM ? objects[i]->captured : NULL;
        if (in == NULL || in->mode == 2 || (in->mode == 1 && !pthread_equal(in->thread, pthread_self()))) continue;
        in->invalid = unsafe = 1;
    }
    return unsafe ? CAPTURE_UNSUPPORTED : 0;
}

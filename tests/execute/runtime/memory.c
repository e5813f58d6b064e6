/* Global and shared memory. Of every byte it is known who wrote it and who read it last, and behind which barrier. */
#include <stdlib.h>
#include <string.h>
#include "runtime.h"

enum { NOBODY = -1, SEVERAL = -2, MOST_BUFFERS = 64 };

typedef struct {
    int writing_program, writer, reading_program, reader;
    uint32_t written, read; /* the epochs */
} Global;

typedef struct {
    uint64_t start, end;
    Global *bytes;
} Buffer;

typedef struct {
    int is_written, writer, reader, has_other_readers;
    uint32_t written, written_in_warp, read, read_in_warp;
} Shared;

char global_smem[MOST_SHARED] __attribute__((aligned(1024)));
int shared_size;
static Shared shadow[MOST_SHARED];
static Buffer buffers[MOST_BUFFERS];
static int count;

void rt_forget(void) {
    for (int i = 0; i < count; i++) free(buffers[i].bytes);
    count = 0;
}

int rt_buffer(uint64_t start, uint64_t size) {
    for (int i = 0; i < count; i++)
        if (buffers[i].start == start) return 0;
    if (count == MOST_BUFFERS) return 1;
    Global *bytes = malloc(sizeof(Global) * (size + 1));
    memset(bytes, 0xff, sizeof(Global) * (size + 1));
    buffers[count++] = (Buffer){start, start + size, bytes};
    return 0;
}

static Global *in_buffer(uint64_t address, int bytes, const char *what) {
    if (address % bytes) found(MISALIGNED, "%s of %d bytes", what, bytes);
    for (int i = 0; i < count; i++)
        if (address >= buffers[i].start && address + bytes <= buffers[i].end) return buffers[i].bytes + (address - buffers[i].start);
    found(BOUNDS, "%s of %d bytes of global memory, outside of all tensors", what, bytes);
    return 0;
}

void rt_load(void *to, uint64_t address, int bytes, int present) {
    if (!present) return;
    Global *each = in_buffer(address, bytes, "a read");
    if (!each) {
        memset(to, 0xff, bytes);
        return;
    }
    for (int i = 0; i < bytes; i++, each++) {
        if (each->writing_program >= 0 && each->writing_program != program)
            found(RACE_BETWEEN_PROGRAMS, "it reads what program %d wrote", each->writing_program);
        else if (each->writing_program == program && each->written == epoch && each->writer != current->id)
            found(RACE_IN_PROGRAM, "it reads what thread %d wrote, without a barrier", each->writer);
        if (each->reading_program != program) {
            each->reading_program = each->reading_program == NOBODY ? (int)program : SEVERAL;
            each->reader = NOBODY;
        }
        each->reader = each->read == epoch && each->reader != NOBODY && each->reader != current->id ? SEVERAL : current->id;
        each->read = epoch;
    }
    memcpy(to, (void *)address, bytes);
}

void rt_store(uint64_t address, const void *from, int bytes, int present) {
    if (!present) return;
    Global *each = in_buffer(address, bytes, "a write");
    if (!each) return;
    for (int i = 0; i < bytes; i++, each++) {
        int other = ((const char *)from)[i] != ((char *)address)[i];
        if (each->writing_program >= 0 && each->writing_program != program)
            found(RACE_BETWEEN_PROGRAMS, "it writes what program %d wrote", each->writing_program);
        else if (each->writing_program == program && each->written == epoch && each->writer != current->id && other)
            found(RACE_IN_PROGRAM, "it writes another value than thread %d", each->writer);
        if (each->reading_program == SEVERAL || (each->reading_program >= 0 && each->reading_program != program))
            found(RACE_BETWEEN_PROGRAMS, "it writes what another program read");
        else if (each->reading_program == program && each->read == epoch && each->reader != current->id)
            found(RACE_IN_PROGRAM, "it writes what another thread read, without a barrier");
        each->writing_program = program, each->writer = current->id, each->written = epoch;
    }
    memcpy((void *)address, from, bytes);
}

void forget_shared(void) {
    memset(global_smem, 0xff, shared_size); /* NaN in every float */
    memset(shadow, 0, sizeof(Shared) * shared_size);
    for (int i = 0; i < shared_size; i++) shadow[i].reader = NOBODY;
}

int shared_offset(uint64_t address, int bytes, int alignment) {
    int64_t offset = (int64_t)address - (int64_t)global_smem;
    if (offset % alignment) found(MISALIGNED, "%d bytes at %ld of shared memory", bytes, (long)offset);
    if (offset >= 0 && offset + bytes <= shared_size) return offset;
    found(BOUNDS, "%d bytes at %ld of %d of shared memory", bytes, (long)offset, shared_size);
    return NOBODY;
}

static int in_this_warp(int thread) { return thread / LANES == current->id / LANES; }

void read_shared(int offset, int bytes) {
    uint32_t in_warp = warp_epoch[current->id / LANES];
    for (Shared *each = shadow + offset; each < shadow + offset + bytes; each++) {
        if (!each->is_written)
            found(UNWRITTEN, "byte %d of shared memory", (int)(each - shadow));
        else if (each->written == epoch && each->writer != current->id) {
            if (!in_this_warp(each->writer))
                found(SHARED_RACE, "it reads what thread %d wrote, without a barrier", each->writer);
            else if (each->written_in_warp == in_warp)
                found(WARP_RACE, "it reads what thread %d wrote, and their warp did not meet", each->writer);
        }
        if (each->read != epoch) each->has_other_readers = 0;
        else if (each->reader != NOBODY && !in_this_warp(each->reader)) each->has_other_readers = 1;
        each->reader = current->id, each->read = epoch, each->read_in_warp = in_warp;
    }
}

void write_shared(int offset, const void *values, int bytes) {
    uint32_t in_warp = warp_epoch[current->id / LANES];
    for (int i = 0; i < bytes; i++) {
        Shared *each = shadow + offset + i;
        int other = ((const char *)values)[i] != global_smem[offset + i];
        if (each->is_written && each->written == epoch && each->writer != current->id && other) {
            if (!in_this_warp(each->writer))
                found(SHARED_RACE, "it writes another value than thread %d", each->writer);
            else if (each->written_in_warp == in_warp)
                found(WARP_RACE, "it writes another value than thread %d", each->writer);
        }
        if (each->read == epoch && each->reader != NOBODY) {
            if (each->has_other_readers || !in_this_warp(each->reader))
                found(SHARED_RACE, "it writes what thread %d read, without a barrier", each->reader);
            else if (each->reader != current->id && each->read_in_warp == in_warp)
                found(WARP_RACE, "it writes what thread %d read, and their warp did not meet", each->reader);
        }
        each->is_written = 1, each->writer = current->id, each->written = epoch, each->written_in_warp = in_warp;
    }
    memcpy(global_smem + offset, values, bytes);
}

void rt_load_shared(uint64_t address, int bytes, int alignment) {
    int offset = shared_offset(address, bytes, alignment);
    if (offset >= 0) read_shared(offset, bytes);
}

void rt_store_shared(uint64_t address, const void *values, int bytes, int present) {
    if (!present) return;
    int offset = shared_offset(address, bytes, bytes);
    if (offset >= 0) write_shared(offset, values, bytes);
}

/* cp.async may land at any time before the wait: here as late as it can. */
void rt_copy(uint64_t to, uint64_t from, int bytes, int filled, int present) {
    if (!present) return;
    if (current->copied == MOST_COPIES) abort();
    current->copies[current->copied++] = (Copy){to, from, bytes, filled > 0};
    current->open++;
}

void rt_commit(void) {
    if (current->groups == MOST_GROUPS) abort();
    current->group[current->groups++] = current->open;
    current->open = 0;
}

void rt_wait(int pending) {
    Thread *t = current;
    for (; t->groups > pending; t->groups--) {
        int landed = t->group[0];
        for (Copy *c = t->copies; c < t->copies + landed; c++) {
            char values[16] = {0};
            rt_load(values, c->from, c->bytes, c->present);
            rt_store_shared(c->to, values, c->bytes, 1);
        }
        t->copied -= landed;
        memmove(t->copies, t->copies + landed, sizeof(Copy) * t->copied);
        memmove(t->group, t->group + 1, sizeof(int) * (t->groups - 1));
    }
}
